"""The command itself: help, exit codes, and what it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from intcert.cli.main import COMMANDS


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_help_is_quick_because_it_loads_nothing_heavy():
    done = python(
        "import sys\nfrom intcert.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'tvm', 'tvm_ffi', 'scipy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    assert done.stderr == "[]\n"
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


def test_no_arguments_show_the_help(intcert):
    result = intcert()
    assert result.exit_code == 0
    assert "Exit codes" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(intcert, name):
    result = intcert(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: intcert {name}") or result.stdout.startswith("Usage: main")
    # A short help that click had to cut would end in dots.
    assert "..." not in next(line for line in intcert("--help").stdout.splitlines() if line.startswith(f"  {name} "))


def test_usage_errors_are_user_errors(refused):
    refused("frobnicate", saying=("No such command 'frobnicate'",))
    refused("compile", saying=("Missing argument 'MODEL'", "compile --help"))
    refused("compile", "demo", "--frobnicate", saying=("--frobnicate",))
    refused("compile", "demo", "--scheme", "q7", saying=("q7",))
    refused("compile", "demo", "--dump", "tir,bytes", saying=("'bytes'", "relax, tir, asm"))


def test_debug_shows_the_traceback(intcert, tmp_path):
    missing = tmp_path / "missing.intcert"
    with pytest.raises(Exception, match=r"missing\.intcert"):
        intcert("--debug", "inspect", missing)


WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Absent())
from intcert.cli.main import main
main(["compile", "demo", "--dry-run"])
"""


def test_a_missing_package_is_exit_code_5():
    done = python(WITHOUT_TORCH)
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: ")
    assert "pip install 'intcert[torch]'" in done.stderr


def test_output_into_a_closed_pipe_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c 'from intcert.cli.main import main; main()' targets | true"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr


def test_targets_names_the_host(intcert):
    from intcert.targets import TARGETS, host

    result = intcert("targets")
    assert result.exit_code == 0
    for target in TARGETS:
        assert target.name in result.stdout
    line = next(line for line in result.stdout.splitlines() if line.startswith(f"{host().name} "))
    assert "yes, = host" in line
