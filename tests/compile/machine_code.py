"""Small shared libraries from C, for the machines that audits know."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from intcert.compile.audit import CodeAudit, Finding, audit_library
from intcert.compile.audit.disassemble import find_disassembler
from intcert.compile.audit.vm import BLOB
from intcert.runtime.errors import MissingDependencyError

MACHINES = ("x86-64", "aarch64", "arm")
_TRIPLES = {"aarch64": "aarch64-linux-gnu", "arm": "arm-linux-gnueabihf"}


def shared_library(machine: str, source: str, folder: Path, *options: str) -> bytes:
    """The library that C makes, without start files or other libraries. Skips where no compiler is installed."""
    if machine == "x86-64":
        if shutil.which("gcc") is None:
            pytest.skip("no gcc")
        command = ["gcc", "-nostdlib"]
    else:
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("no ziglang to compile for another machine")
        command = [sys.executable, "-m", "ziglang", "cc", "-target", _TRIPLES[machine]]
        command += ["-nostdlib", "-fno-sanitize=all"]
    (folder / "a.c").write_text(source)
    command += ["-O2", "-shared", "-fPIC", *options, "-o", str(folder / "a.so"), str(folder / "a.c")]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "a.so").read_bytes()


def audit_c(machine: str, source: str, folder: Path, *options: str) -> tuple[CodeAudit, tuple[Finding, ...]]:
    """The audit of C source as machine code, and its findings. Skips where no disassembler reads it."""
    try:
        find_disassembler(machine)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    audit = audit_library(shared_library(machine, source, folder, *options))
    return audit.codes[0], audit.findings


def embedding(blob: bytes, folder: Path) -> bytes:
    """A library of integer code that carries some bytes where TVM puts modules."""
    source = f"const unsigned char {BLOB}[] = {{{','.join(map(str, blob))}}}; int f(void) {{ return 1; }}"
    return shared_library("x86-64", source, folder)


def packed(*modules: tuple[str, bytes]) -> bytes:
    """Modules, by kind, as TVM packs them beside the library itself; the import tree is left empty."""

    def text(data: bytes) -> bytes:
        return len(data).to_bytes(8, "little") + data

    return text(bytes(16) + text(b"_lib") + b"".join(text(kind.encode()) + text(data) for kind, data in modules))
