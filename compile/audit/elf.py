"""What the audit needs of an ELF file: its code, the names in it, and what it takes from elsewhere."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from elftools.common.exceptions import ELFError
from elftools.construct.core import ConstructError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section as RawSection
from elftools.elf.sections import SymbolTableSection

from intcert.runtime.errors import ArtifactError

MACHINES = {"EM_X86_64": "x86-64", "EM_AARCH64": "aarch64", "EM_ARM": "arm"}
_RELATIVE = {"x86-64": 8, "aarch64": 1027, "arm": 23}  # R_*_RELATIVE: the base address plus an addend


@dataclass(frozen=True)
class Section:
    """A piece of memory that the file fills. address: of its first byte in the loaded file."""

    name: str
    address: int
    data: bytes

    @property
    def end(self) -> int:
        return self.address + len(self.data)

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.end


@dataclass(frozen=True)
class Function:
    """Code from a symbol to the next one. names: all symbols of its address, or the section's name where none is."""

    names: tuple[str, ...]
    section: str
    start: int
    end: int

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True, eq=False)
class Binary:
    """A linked ELF file.

    machine: ``x86-64``, ``aarch64`` or ``arm``; code: executable sections; functions: by ascending address, together
    they cover the code; data: half-open ranges in the code that mapping symbols declare to be data; exports: address
    by name; entries: addresses that the loader calls, or that lie as pointers in data; imports: symbols taken from
    other libraries; slots: where the loader writes an import's address; named: whether the file has a symbol table;
    objects: bytes of the exported data by name.
    """

    machine: str
    code: tuple[Section, ...]
    functions: tuple[Function, ...]
    data: tuple[tuple[int, int], ...]
    exports: Mapping[str, int]
    entries: frozenset[int]
    imports: tuple[str, ...]
    slots: Mapping[int, str]
    named: bool
    objects: Mapping[str, bytes]

    def is_code(self, address: int) -> bool:
        return any(address in section for section in self.code)

    def is_data(self, address: int) -> bool:
        position = bisect.bisect_right(self.data, (address, 1 << 64)) - 1
        return position >= 0 and address < self.data[position][1]

    def function_at(self, address: int) -> Function | None:
        """The function that holds an address."""
        position = bisect.bisect_right(self.functions, address, key=lambda function: function.start) - 1
        found = self.functions[position] if position >= 0 else None
        return found if found is not None and address < found.end else None


def read_binary(content: bytes, label: str) -> Binary:
    """Read a linked ELF file for a known machine. label: what an error calls it.

    Raises ArtifactError.
    """
    try:
        return _Reader(ELFFile(BytesIO(content)), label).binary()
    except (ELFError, ConstructError, ValueError, KeyError, IndexError, AttributeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{label} is not an ELF file that can be read ({error}); compile the model again") from None


class _Reader:
    def __init__(self, elf: ELFFile, label: str) -> None:
        machine = elf["e_machine"]
        if machine not in MACHINES or not elf.little_endian:
            raise ArtifactError(f"{label} is for {machine}; the audit knows {', '.join(MACHINES.values())}")
        if elf["e_type"] not in ("ET_DYN", "ET_EXEC"):
            raise ArtifactError(f"{label} is not linked ({elf['e_type']}); link it, calls in it go nowhere yet")
        self.elf, self.machine = elf, MACHINES[machine]
        self.sections: list[RawSection] = list(elf.iter_sections())
        executable = [s for s in self.sections if s["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and s["sh_size"]]
        self.code = tuple(
            sorted((Section(s.name, s["sh_addr"], s.data()) for s in executable), key=lambda s: s.address)
        )
        if not self.code:
            raise ArtifactError(f"{label} has no section with code; compile the model again")

    def binary(self) -> Binary:
        tables = [s for s in self.sections if isinstance(s, SymbolTableSection)]
        symbols = [symbol for table in tables for symbol in table.iter_symbols()]
        dynamic = self.elf.get_section_by_name(".dynsym")
        names: defaultdict[int, list[str]] = defaultdict(list)
        marks: list[tuple[int, str]] = []
        for symbol in symbols:
            if not isinstance(symbol["st_shndx"], int):
                continue
            address = symbol["st_value"]
            if self.machine != "x86-64" and symbol.name[:2] in ("$a", "$d", "$t", "$x"):
                marks.append((address, symbol.name[1]))
            elif symbol["st_info"]["type"] in ("STT_FUNC", "STT_GNU_IFUNC"):
                address = self._code_address(address)
                if symbol.name not in names[address]:
                    names[address].append(symbol.name)
        exports, imports = {}, []
        for symbol in dynamic.iter_symbols() if dynamic is not None else ():
            if symbol["st_shndx"] == "SHN_UNDEF":
                imports.extend([symbol.name] if symbol.name else [])
            elif symbol["st_info"]["type"] == "STT_FUNC":
                exports[symbol.name] = self._code_address(symbol["st_value"])
        slots, entries = self._relocations()
        return Binary(
            machine=self.machine,
            code=self.code,
            functions=tuple(self._functions(names)),
            data=tuple(self._data(marks)),
            exports=exports,
            entries=frozenset(entries | self._loader_entries()),
            imports=tuple(sorted(set(imports))),
            slots=slots,
            named=self.elf.get_section_by_name(".symtab") is not None,
            objects=self._objects(symbols),
        )

    def _code_address(self, value: int) -> int:
        """The least bit of a function's address says Thumb on ARM."""
        return value & ~1 if self.machine == "arm" else value

    def _in_code(self, address: int) -> bool:
        return any(address in section for section in self.code)

    def _functions(self, names: Mapping[int, list[str]]) -> list[Function]:
        found = []
        for section in self.code:
            starts = sorted({section.address, *(address for address in names if address in section)})
            for start, end in itertools.pairwise([*starts, section.end]):
                here = tuple(sorted(names.get(start, ()), key=lambda name: (name.count("."), name)))
                found.append(Function(here or (section.name,), section.name, start, end))
        return found

    def _data(self, marks: list[tuple[int, str]]) -> list[tuple[int, int]]:
        """Ranges that begin at $d; the next mark in the same section ends one."""
        found = []
        for section in self.code:
            inside = sorted({mark for mark in marks if mark[0] in section})
            for (start, kind), (end, _) in itertools.pairwise([*inside, (section.end, "")]):
                if kind == "d" and end > start:
                    found.append((start, end))
        return found

    def _relocations(self) -> tuple[dict[int, str], set[int]]:
        """Import slots, and code addresses that the loader puts into data."""
        slots = self._lazy_binding()
        entries: set[int] = set()
        for section in self.sections:
            if not isinstance(section, RelocationSection) or not section["sh_flags"] & SH_FLAGS.SHF_ALLOC:
                continue
            symbols = self.elf.get_section(section["sh_link"])
            for relocation in section.iter_relocations():
                place = relocation["r_offset"]
                addend = relocation["r_addend"] if relocation.is_RELA() else self._word(place)
                if relocation["r_info_type"] == _RELATIVE[self.machine]:
                    value = addend
                else:
                    symbol = symbols.get_symbol(relocation["r_info_sym"])
                    if symbol["st_shndx"] == "SHN_UNDEF":
                        slots[place] = symbol.name
                        continue
                    value = symbol["st_value"]
                if self._in_code(self._code_address(value)):
                    entries.add(self._code_address(value))
        return slots, entries

    def _lazy_binding(self) -> dict[int, str]:
        """The slot by which linkage stubs call the dynamic linker itself: the third word of their table."""
        table = self.elf.get_section_by_name(".got.plt")
        return {} if table is None else {table["sh_addr"] + 2 * self.elf.elfclass // 8: "dynamic linker"}

    def _word(self, address: int) -> int:
        section = next((section for section in self.filled if address in section), None)
        return 0 if section is None else int.from_bytes(section.data[address - section.address :][:4], "little")

    @functools.cached_property
    def filled(self) -> list[Section]:
        allocated = (s for s in self.sections if s["sh_flags"] & SH_FLAGS.SHF_ALLOC and s["sh_type"] != "SHT_NOBITS")
        return [Section(s.name, s["sh_addr"], s.data()) for s in allocated]

    def _loader_entries(self) -> set[int]:
        dynamic = self.elf.get_section_by_name(".dynamic")
        tags = dynamic.iter_tags() if dynamic is not None else ()
        found = {self._code_address(tag["d_val"]) for tag in tags if tag["d_tag"] in ("DT_INIT", "DT_FINI")}
        if self.elf["e_entry"]:
            found.add(self._code_address(self.elf["e_entry"]))
        return found

    def _objects(self, symbols: list) -> dict[str, bytes]:
        """The bytes of global data objects by name."""
        found = {}
        for symbol in symbols:
            index, info = symbol["st_shndx"], symbol["st_info"]
            if isinstance(index, int) and (info["type"], info["bind"]) == ("STT_OBJECT", "STB_GLOBAL"):
                section = self.elf.get_section(index)
                offset = symbol["st_value"] - section["sh_addr"]
                found[symbol.name] = section.data()[offset : offset + symbol["st_size"]]
        return found
