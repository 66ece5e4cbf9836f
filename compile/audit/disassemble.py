"""Decoding machine code with the disassembler that a machine has, and checking that it read every byte."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from intcert.compile.audit.elf import Binary, Section
from intcert.compile.audit.instructions import Instruction
from intcert.runtime.errors import ArtifactError, MissingDependencyError

# LLVM's objdump decodes for ARM what it is told that the processor has.
_LLVM_STYLE = {
    "x86-64": ("-M", "intel"),
    "aarch64": ("--mattr=+v8.6a,+fullfp16,+fp16fml,+dotprod,+i8mm,+bf16,+crypto,+sve2",),
    "arm": ("--mattr=+v8.6a,+neon,+vfp4,+fullfp16,+dotprod,+i8mm,+bf16,+hwdiv,+hwdiv-arm",),
}
_GNU_STYLE = {"x86-64": ("-M", "intel"), "aarch64": (), "arm": ()}
_GNU_PREFIX = {"x86-64": "x86_64-linux-gnu-", "aarch64": "aarch64-linux-gnu-", "arm": "arm-linux-gnueabihf-"}
_HOST = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64", "armv7l": "arm"}
_COMMENT = {"x86-64": "#", "aarch64": "//", "arm": "@|;"}
_LINE = re.compile(r"\s*([0-9a-f]+):\s+((?:[0-9a-f]{2,8} )*[0-9a-f]{2,8})\s*(?:\t(.*))?")
_PREFIXES = frozenset(
    {"lock", "rep", "repe", "repz", "repne", "repnz", "notrack", "bnd", "data16", "cs", "ds", "es", "ss"}
    | {"{vex}", "{vex2}", "{vex3}", "{evex}"}
)


@dataclass(frozen=True)
class Disassembler:
    """A program that decodes. name: with its version, for the record; flags: for one machine."""

    path: str
    name: str
    flags: tuple[str, ...]

    def decode(self, content: bytes, binary: Binary) -> Iterator[tuple[Section, list[Instruction]]]:
        """The instructions of each section with code; together they cover all of its bytes."""
        with tempfile.TemporaryDirectory(prefix="intcert-") as folder:
            file = Path(folder) / "lib.so"
            file.write_bytes(content)
            text = run_tool(self.path, *self.flags, str(file))
        decoded = {instruction.address: (instruction, raw) for instruction, raw in _parse(text, binary.machine)}
        for section in binary.code:
            yield section, list(_cover(section, decoded))


def find_disassembler(machine: str) -> Disassembler:
    """LLVM's objdump, which knows all machines, else GNU's for this one.

    Raises MissingDependencyError.
    """
    llvm = _newest_llvm()
    if llvm is not None:
        version = re.search(r"LLVM version (\S+)", run_tool(llvm, "--version"))
        flags = ("-d", "-z", *_LLVM_STYLE[machine])
        return Disassembler(llvm, f"llvm-objdump {version[1] if version else ''}".strip(), flags)
    gnu = shutil.which(f"{_GNU_PREFIX[machine]}objdump")
    if gnu is None and _HOST.get(platform.machine()) == machine:
        gnu = shutil.which("objdump")
    if gnu is not None:
        version = run_tool(gnu, "--version").splitlines()[0].split()[-1]
        return Disassembler(gnu, f"GNU objdump {version}", ("-d", "-z", "-w", *_GNU_STYLE[machine]))
    native = _HOST.get(platform.machine()) == machine
    package = "binutils" if native else f"binutils-{_GNU_PREFIX[machine][:-1].replace('_', '-')}"
    raise MissingDependencyError(
        f"the audit of {machine} code needs a disassembler; install llvm-objdump (apt install llvm) or objdump "
        f"(apt install {package})"
    )


def run_tool(*command: str) -> str:
    """Standard output of a disassembler, in English.

    Raises ArtifactError where it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ArtifactError(
            f"{command[0]} cannot read this machine code ({reason}): rebuild it if it is damaged, else install a newer "
            "disassembler"
        )
    return done.stdout


def _newest_llvm() -> str | None:
    """llvm-objdump, or the highest of the names with a version that distributions give it."""
    plain = shutil.which("llvm-objdump")
    if plain is not None:
        return plain
    found = {}
    for folder in os.get_exec_path():
        for path in Path(folder).glob("llvm-objdump-[0-9]*"):
            number = path.name.removeprefix("llvm-objdump-")
            if number.isdecimal() and os.access(path, os.X_OK):
                found.setdefault(int(number), str(path))
    return found[max(found)] if found else None


def _parse(text: str, machine: str) -> Iterator[tuple[Instruction, bytes]]:
    comment = re.compile(rf"\s*(?:{_COMMENT[machine]}).*|\s*<[^>]*>.*")
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        raw = b"".join(_in_memory_order(word) for word in match[2].split())
        decoded = match[3] or ""
        words = decoded.split()
        while words and words[0] in _PREFIXES and machine == "x86-64":
            # objdump of GNU gives a prefix without an instruction a line of its own.
            words = words[1:]
        mnemonic = words[0] if words else ""
        if mnemonic.startswith((".", "<", "(")):
            mnemonic = ""
        operands = comment.sub("", " ".join(words[1:])) if mnemonic else ""
        yield Instruction(int(match[1], 16), len(raw), mnemonic, operands.strip()), raw


def _in_memory_order(word: str) -> bytes:
    """Bytes of a group of hexadecimal digits: single bytes, or a little-endian word."""
    return bytes.fromhex(word)[::-1]


def _cover(section: Section, decoded: dict[int, tuple[Instruction, bytes]]) -> Iterator[Instruction]:
    """Instructions from the section's first byte to its last; bytes left out or misread become ones without a name."""
    address = section.address
    for start in [*sorted(start for start in decoded if start in section), section.end]:
        if start > address:
            yield Instruction(address, start - address, "", "")
        if start == section.end:
            return
        instruction, raw = decoded[start]
        same = start >= address and section.data[start - section.address :].startswith(raw)
        yield instruction if same else Instruction(start, len(raw), "", "")
        address = instruction.end
