"""Linkers: which one is taken, what is said where there is none, and libraries for other machines."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path

import pytest
from random_models import random_integer_graph

from intcert.compile.build import compile_artifact
from intcert.compile.linker import Linker, find_linker
from intcert.runtime.artifact import read_artifact
from intcert.runtime.errors import MissingDependencyError
from intcert.targets import find

ELF = {"arm-a72": (2, 183), "arm-a7": (1, 40), "x86": (2, 62)}  # class (32 or 64 bits) and machine


def install(monkeypatch: pytest.MonkeyPatch, *tools: str, machine: str = "x86_64", ziglang: bool = False) -> None:
    """Make exactly these tools seem to be installed."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in tools else None)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if ziglang else None)


@pytest.mark.parametrize(
    ("target", "machine", "tools", "ziglang", "expected"),
    [
        ("x86", "x86_64", ("gcc", "cc"), True, "gcc"),
        ("x86", "x86_64", ("cc",), True, "cc"),
        ("x86", "aarch64", ("gcc", "x86_64-linux-gnu-gcc"), False, "x86_64-linux-gnu-gcc"),
        ("arm-a72", "aarch64", ("gcc",), False, "gcc"),
        ("arm-a72", "x86_64", ("gcc", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-ld"), True, "aarch64-linux-gnu-gcc"),
        ("arm-a72", "x86_64", ("gcc", "aarch64-linux-gnu-ld"), True, "aarch64-linux-gnu-ld"),
        ("arm-a72", "x86_64", ("gcc", "arm-linux-gnueabihf-gcc"), True, "ziglang"),
        ("arm-a7", "armv7l", ("gcc",), False, "gcc"),
        ("arm-a7", "aarch64", ("gcc", "arm-linux-gnueabihf-gcc"), False, "arm-linux-gnueabihf-gcc"),
    ],
)
def test_the_preferred_linker(
    monkeypatch: pytest.MonkeyPatch, target: str, machine: str, tools: tuple[str, ...], ziglang: bool, expected: str
) -> None:
    install(monkeypatch, *tools, machine=machine, ziglang=ziglang)
    assert find_linker(find(target)).name == expected


def test_no_linker_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Found out before anything is compiled; nothing is left behind."""
    install(monkeypatch, "gcc")
    with pytest.raises(MissingDependencyError, match=r"^nothing .* arm-a72; .*pip install 'intcert\[cross\]'$"):
        compile_artifact(random_integer_graph(3, "q15"), tmp_path / "a", target="arm-a72", sigma="0.25")
    assert MissingDependencyError.exit_code == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ELF)
def test_libraries_of_other_machines(target: str, tmp_path: Path) -> None:
    """Libraries of the right kind; test_arm.py executes their kernels."""
    try:
        find_linker(find(target))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    compile_artifact(random_integer_graph(3, "q15"), tmp_path / "a", target=target, sigma="0.25")
    library = read_artifact(tmp_path / "a").library
    assert library[:4] == b"\x7fELF"
    assert (library[4], int.from_bytes(library[18:20], "little")) == ELF[target]
    assert library[16] == 3  # a shared object


def test_a_linker_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.o").write_bytes(b"no object")
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    with pytest.raises(RuntimeError, match=r"gcc cannot link.*broken\.o"):
        Linker("gcc", (gcc, "-shared"))(str(tmp_path / "lib.so"), [str(tmp_path / "broken.o")])
