"""The audit of CUDA device code: cubins, and fat binaries of them."""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from intcert.compile.audit import sass
from intcert.compile.audit.disassemble import run_tool
from intcert.compile.audit.instructions import Instruction
from intcert.compile.audit.result import CodeAudit, Finding, FunctionAudit
from intcert.compile.cuda_toolkit import find_program
from intcert.runtime.errors import MissingDependencyError

_FATBIN = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes after it
_MAGIC = (0xBA55ED50).to_bytes(4, "little")
_CUBIN = re.compile(rb"\x7fELF.{14}\xbe\x00", re.DOTALL)  # e_machine 190
_PACKAGE = "nvidia-cuda-cuobjdump"

_ARCHITECTURE = re.compile(r"\s*code for (sm_\w+)\s*")
_PTX = re.compile(r"\s*Fatbin ptx code:\s*")
_FUNCTION = re.compile(r"\s*Function : (\S+)\s*")
_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+?)(?:\s+(.*?))?\s*;\s*/\*.*\*/\s*")
_WORD = re.compile(r"\s*/\* 0x[0-9a-f]{16} \*/\s*")
_SIZE = 16  # bytes an instruction, Volta and later


class DeviceCodeError(ValueError):
    """Device code that no disassembler can read: source or PTX, which the driver compiles later."""


def audit_images(data: bytes) -> tuple[CodeAudit, ...]:
    """Read the device code in some bytes: a cubin, a fat binary, or a TVM module that holds one.

    Returns a result for each image, which is for one kind of processor.
    Raises DeviceCodeError where there is none, MissingDependencyError where cuobjdump is missing.
    """
    images = list(_images(data))
    if not images:
        raise DeviceCodeError("there is no machine code in it: the driver would compile it on the device, unseen")
    tool = find_cuobjdump()
    version = re.search(r"V(\d+[\d.]*)", run_tool(tool, "--version"))
    name = f"cuobjdump {version[1] if version else ''}".strip()
    audits = []
    for image in images:
        with tempfile.TemporaryDirectory(prefix="intcert-") as folder:
            file = Path(folder) / ("image.fatbin" if image.startswith(_MAGIC) else "image.cubin")
            file.write_bytes(image)
            text = run_tool(tool, "-sass", str(file))
        audits.extend(_audits(text, name))
    if not any(audit.functions for audit in audits):
        raise DeviceCodeError("cuobjdump finds no function in it")
    return tuple(audits)


def is_image(data: bytes) -> bool:
    """Whether some bytes are device code by themselves."""
    return data.startswith(_MAGIC) or _CUBIN.match(data) is not None


def _images(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        fatbin = data.find(_MAGIC, position)
        cubin = _CUBIN.search(data, position, fatbin if fatbin >= 0 else len(data))
        if cubin is not None:
            yield data[cubin.start() :]
            return
        if fatbin < 0:
            return
        _, _, header, size = _FATBIN.unpack_from(data, fatbin)
        yield data[fatbin : fatbin + header + size]
        position = fatbin + header + size


def find_cuobjdump() -> str:
    """The program on the path, in the CUDA toolkit, or from its Python package; with nvdisasm, which it calls.

    Raises MissingDependencyError.
    """
    found = find_program("cuobjdump", _PACKAGE)
    folders = os.pathsep.join([str(Path(found).parent), *os.get_exec_path()]) if found else ""
    if found is None or shutil.which("nvdisasm", path=folders) is None:
        raise MissingDependencyError("the audit of CUDA code needs cuobjdump and nvdisasm: pip install 'intcert[sass]'")
    return found


def _audits(text: str, tool: str) -> Iterator[CodeAudit]:
    """Results of cuobjdump's text, one for each image in it."""
    architecture, name = "", ""
    listing: dict[str, list[Instruction]] = {}
    broken: list[Finding] = []
    for line in text.splitlines():
        if match := _ARCHITECTURE.fullmatch(line):
            if listing:
                yield _audit(architecture, tool, listing, broken)
                listing, broken = {}, []
            architecture = match[1]
        elif _PTX.fullmatch(line):
            broken.append(Finding("fat binary", 0, "PTX", "a driver would compile it on the device, unseen"))
        elif match := _FUNCTION.fullmatch(line):
            name = match[1]
            listing[name] = []
        elif match := _LINE.fullmatch(line):
            listing[name].append(Instruction(int(match[1], 16), _SIZE, match[2], match[3] or ""))
        elif "/*" in line and not _WORD.fullmatch(line):
            broken.append(Finding(name, 0, line.strip()[:80], "not a line that the audit can read"))
    if listing:
        yield _audit(architecture, tool, listing, broken)


def _audit(architecture: str, tool: str, listing: dict[str, list[Instruction]], broken: list[Finding]) -> CodeAudit:
    findings, functions = list(broken), []
    for name, instructions in listing.items():
        kinds: Counter[str] = Counter()
        for number, instruction in enumerate(instructions):
            kind = sass.classify(instruction)
            if instruction.address != number * _SIZE:
                findings.append(Finding(name, instruction.address, str(instruction), "bytes before it were left out"))
            if kind is None:
                reason = "not on the list of integer, move and control instructions"
                findings.append(Finding(name, instruction.address, str(instruction), reason))
            else:
                kinds[kind.value] += 1
        mnemonics = Counter(instruction.mnemonic.split(".")[0] for instruction in instructions)
        functions.append(
            FunctionAudit(name, "device", 0, True, dict(sorted(kinds.items())), dict(sorted(mnemonics.items())))
        )
    return CodeAudit(architecture, tool, tuple(functions), tuple(findings))
