"""What a board's processor can do, asked of a stock RPC server.

The server runs no code of ours before the library, and the library's first instruction may be one that the processor
lacks. But the server hands out files, and Linux describes its processor in one that can be read whole
(/proc/cpuinfo cannot: it has no size).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

CPU_FILE = "/sys/devices/system/cpu/modalias"
MODEL_FILE = "/sys/firmware/devicetree/base/model"  # on boards; servers describe themselves in other ways

_MODALIAS = re.compile(rb"cpu:type:([a-z0-9_]+),?[^:]*:feature:([,0-9A-F]*)")
_MACHINES = {62: "x86", 183: "aarch64"}  # e_machine of ELF, and the kernel's name in modalias

# Numbers of features as Linux counts them, by their names in /proc/cpuinfo.
# x86: arch/x86/include/asm/cpufeatures.h, 32 word + bit.
_X86 = {
    "avx2": (0x125,),
    "avx512f": (0x130,),
    "avx512dq": (0x131,),
    "avx512bw": (0x13E,),
    "avx512vl": (0x13F,),
    "avx512vbmi": (0x201,),
    "avx512_vnni": (0x20B,),
    "amx_tile": (0x258,),
    "amx_int8": (0x259,),
}
# aarch64: the bits of AT_HWCAP (arch/arm64/include/uapi/asm/hwcap.h); those of AT_HWCAP2 follow from 32 on, in newer
# kernels from 64 on.
_AARCH64 = {"asimd": (1,), "asimddp": (20,), "i8mm": (32 + 13, 64 + 13)}
_NUMBERS: Mapping[str, Mapping[str, tuple[int, ...]]] = {"x86": _X86, "aarch64": _AARCH64}


def describe(model: bytes, modalias: bytes) -> str:
    """A board's kind in words, like "Raspberry Pi 4 Model B Rev 1.4"; empty where neither file tells.

    model, modalias: contents of ``MODEL_FILE`` and ``CPU_FILE``, empty or padded with zeros.
    """
    name = model.rstrip(b"\0").decode(errors="replace").strip()
    found = _MODALIAS.match(modalias)
    return name or (modalias[: found.start(2)].decode(errors="replace").removesuffix(":feature:") if found else "")


def missing_flags(needed: tuple[str, ...], library: bytes, modalias: bytes) -> list[str]:
    """Of the flags that a library needs, those that a processor surely lacks.

    needed: named as in /proc/cpuinfo; library: an ELF file; modalias: content of ``CPU_FILE`` on the board, which may
    be padded with zeros. Flags that have no known number are not judged, nor is a board that seems to be of another
    architecture: an emulator shows the file of the machine below it.
    """
    found = _MODALIAS.match(modalias)
    machine = _MACHINES.get(int.from_bytes(library[18:20], "little"))
    if found is None or machine is None or found[1].decode() != machine:
        return []
    present = {int(number, 16) for number in found[2].split(b",") if number}
    numbers = _NUMBERS[machine]
    return [flag for flag in needed if flag in numbers and not present.intersection(numbers[flag])]
