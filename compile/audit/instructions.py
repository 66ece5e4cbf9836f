"""What an instruction set is to the audit: a whitelist of mnemonics by class, and where an instruction goes next.

A mnemonic that is on no list is a finding, whatever it does, so a new instruction is refused until somebody has read
what it does and put it into a class.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Classes of instructions that an integer-only function may hold.

    The last three carry a float type in their name and touch bits only: compilers choose them for integer data too.
    """

    INTEGER = "integer"
    DOT = "dot"
    LOGIC = "logic"
    MOVE = "move"
    SHUFFLE = "shuffle"
    CONTROL = "control"
    SYSTEM = "system"
    FLOAT_MOVE = "float-typed move"
    FLOAT_LOGIC = "float-typed logic"
    FLOAT_SHUFFLE = "float-typed shuffle"


FLOAT_TYPED = (Kind.FLOAT_MOVE, Kind.FLOAT_LOGIC, Kind.FLOAT_SHUFFLE)
PLAIN = tuple(kind for kind in Kind if kind not in FLOAT_TYPED)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction. mnemonic: without prefixes; empty for bytes that the disassembler could not decode."""

    address: int
    size: int
    mnemonic: str
    operands: str

    @property
    def end(self) -> int:
        return self.address + self.size

    def __str__(self) -> str:
        return f"{self.mnemonic} {self.operands}".strip() or "bytes that are no instruction"


@dataclass(frozen=True, slots=True)
class Flow:
    """Where execution goes after an instruction.

    falls: to the next one, perhaps; target: address of a direct branch or call; indirect: to an address in a register
    or in memory, other than a return.
    """

    falls: bool = True
    target: int | None = None
    indirect: bool = False


NEXT = Flow()
STOP = Flow(falls=False)


@dataclass(frozen=True)
class InstructionSet:
    """One architecture. classify: the class of an instruction, None where it is on no list; flow: where it goes."""

    classify: Callable[[Instruction], Kind | None]
    flow: Callable[[Instruction], Flow]


def expand(lists: Mapping[Kind, str]) -> dict[str, Kind]:
    """Class by mnemonic, of lists that ``expand_words`` reads."""
    table: dict[str, Kind] = {}
    for kind, words in lists.items():
        for mnemonic in expand_words(words):
            if table.setdefault(mnemonic, kind) is not kind:
                raise ValueError(f"{mnemonic} is in two classes: {table[mnemonic]} and {kind}")
    return table


def expand_words(words: str) -> Iterable[str]:
    """Words, whose braces give alternatives as in a shell: ``p{add,sub}{b,w}`` stands for four."""
    for word in words.split():
        parts = [part[1:-1].split(",") if part[0] == "{" else [part] for part in re.findall(r"\{[^}]*\}|[^{]+", word)]
        yield from map("".join, itertools.product(*parts))


def last_address(operands: str) -> int | None:
    """The hexadecimal address at the end of a direct branch's operands."""
    match = re.search(r"(?:^|[\s,])(?:0x)?([0-9a-f]+)$", operands)
    return int(match[1], 16) if match else None
