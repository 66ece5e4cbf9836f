"""``intcert audit``, and what ``compile`` and ``inspect`` say of it."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from intcert.compile.audit.disassemble import find_disassembler
from intcert.runtime import read_artifact
from intcert.runtime.errors import MissingDependencyError


@pytest.fixture(autouse=True)
def disassembler() -> None:
    try:
        find_disassembler("x86-64")
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def float_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library with eleven floating-point divisions in a row."""
    folder = tmp_path_factory.mktemp("float")
    divisions = "x = y / x;" * 11
    (folder / "f.c").write_text(f"float f(float x, float y) {{ {divisions} return x; }}")
    command = ["gcc", "-O2", "-shared", "-fPIC", "-nostdlib", "-o", folder / "f.so", folder / "f.c"]
    subprocess.run(command, check=True)
    return folder / "f.so"


def test_a_clean_artifact(intcert, colour_artifact):
    result = intcert("audit", colour_artifact)
    assert result.exit_code == 0, result.output
    for text in ("code for  x86-64", "read by ", "vm.builtin.alloc_tensor", "counts_host_compute_", "never called"):
        assert text in result.stdout
    total = read_artifact(colour_artifact).manifest.audit["codes"][0]["instructions"]
    assert f"integer-only: none of {total:,} instructions computes with floats" in result.stdout.splitlines()[-1]


def test_the_table_adds_up(intcert, colour_artifact):
    content = json.loads(intcert("audit", colour_artifact, "--json").stdout)
    (code,) = content["codes"]
    assert content["clean"] is True
    assert content["findings"] == []
    assert code["instructions"] == sum(code["kinds"].values()) == sum(f["instructions"] for f in code["functions"])
    for function in code["functions"]:
        assert function["instructions"] == sum(function["mnemonics"].values()) == sum(function["kinds"].values())


def test_a_hit_is_exit_code_1_and_quoted(intcert, float_library):
    result = intcert("audit", float_library)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {float_library} is not proven integer-only: 11 findings, the first f at 0x")
    assert "divss" in line
    assert "and 1 more; --json lists them" in result.stdout
    assert "integer-only: none" not in result.stdout
    result = intcert("audit", float_library, "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["clean"] is False
    assert {finding["function"] for finding in content["findings"]} == {"f"}
    assert len(content["findings"]) == 11


def test_an_artifact_with_floats_inside(intcert, colour_artifact, float_library, tmp_path):
    """One whose compiler did not look, or was changed: the audit looks at the code, not at the manifest."""
    import hashlib

    path = tmp_path / "changed.intcert"
    with zipfile.ZipFile(colour_artifact) as old, zipfile.ZipFile(path, "w") as new:
        manifest = json.loads(old.read("manifest.json"))
        manifest["members"]["lib.so"] = hashlib.sha256(float_library.read_bytes()).hexdigest()
        new.writestr("manifest.json", json.dumps(manifest))
        for name in manifest["members"]:
            new.writestr(name, float_library.read_bytes() if name == "lib.so" else old.read(name))
    assert "integer-only" in intcert("inspect", path).stdout
    assert intcert("audit", path).exit_code == 1


def test_what_is_no_machine_code_is_refused(refused, colour_artifact, tmp_path):
    text = tmp_path / "notes.so"
    text.write_text("no code")
    refused("audit", text, saying=(text, "not an ELF file"))
    refused("audit", tmp_path / "missing.intcert", saying=("missing.intcert",))
    damaged = tmp_path / "damaged.intcert"
    damaged.write_bytes(colour_artifact.read_bytes()[:2000])
    refused("audit", damaged, saying=(damaged,))


def test_no_disassembler_is_exit_code_5(intcert, colour_artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = intcert("audit", colour_artifact)
    assert result.exit_code == 5
    assert "apt install llvm" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_compile_and_inspect_say_what_was_found(intcert, colour_model, tmp_path):
    output = tmp_path / "m.intcert"
    result = intcert("compile", colour_model, "-o", output, "--integer-only")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("audit ")]
    assert "integer-only (x86-64: " in line
    assert line in intcert("inspect", output).stdout.replace("audit       ", line[: line.index("integer")])


def test_compile_without_a_disassembler_goes_on_and_says_so(intcert, colour_model, tmp_path, monkeypatch):
    import shutil

    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("gcc", "ld", "as"):
        (tools / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(tools))
    output = tmp_path / "m.intcert"
    result = intcert("compile", colour_model, "-o", output)
    assert result.exit_code == 0, result.output
    assert "not audited: no disassembler was installed" in result.stdout
    assert read_artifact(output).manifest.audit is None
    assert "not audited" in intcert("inspect", output).stdout
    result = intcert("compile", colour_model, "-o", tmp_path / "n.intcert", "--integer-only")
    assert result.exit_code == 5
    assert sorted(os.listdir(tmp_path)) == ["bin", "m.intcert"]
