"""The modules that a library carries as data: TVM's VM code, and device code.

``runtime.ModulePackImportsToLLVM`` writes them (TVM, src/target/codegen.cc): a size, the import tree as two vectors,
then each module's kind and bytes. The VM's bytes begin with its function table (src/runtime/vm/executable.cc).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

BLOB = "__tvm_ffi__library_bin"
VM_KIND = "relax.VMExecutable"
LIBRARY_KIND = "_lib"

_MAGIC = 0xD225DE2F4214151E
_PACKED, _VM_FUNCTION, _VM_TIR = 0, 1, 2


class _Reader:
    """TVM's serialization: little-endian, lengths as 64-bit integers."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        """Raises ValueError at the end."""
        if count > len(self.data) - self.position:
            raise ValueError("ends early")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str = "<Q") -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> bytes:
        return self.take(self.number())

    @property
    def finished(self) -> bool:
        return self.position == len(self.data)


def carried_modules(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Kind and bytes of each module in the object ``BLOB``, but the library itself.

    Raises ValueError: not what TVM writes.
    """
    outer = _Reader(blob)
    reader = _Reader(outer.text())
    for _ in range(2):
        reader.take(8 * reader.number())
    while not reader.finished:
        kind = reader.text().decode()
        if kind != LIBRARY_KIND:
            yield kind, reader.text()


def vm_calls(executable: bytes) -> tuple[str, ...]:
    """Names of the functions outside the VM that its code calls.

    Raises ValueError: another format than this TVM's.
    """
    reader = _Reader(executable)
    if reader.number() != _MAGIC:
        raise ValueError("is no VM code")
    reader.text()
    names = []
    for _ in range(reader.number()):
        kind, name = reader.number("<i"), reader.text().decode()
        reader.take(4 * 8)
        for _ in range(reader.number()):
            reader.text()
        if kind not in (_PACKED, _VM_FUNCTION, _VM_TIR):
            raise ValueError(f"has a function of kind {kind}")
        if kind != _VM_FUNCTION:
            names.append(name)
    return tuple(sorted(names))
