"""Placement of everything that one chunk needs in memory: activations and scratch share an arena by their lifetimes."""

from __future__ import annotations

from dataclasses import dataclass

from intcert.compile.layout import round_up

ALIGN = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class Block:
    """Bytes that must be there from step ``first`` through step ``last``."""

    name: str
    bytes: int
    first: int
    last: int


def place(blocks: list[Block]) -> tuple[dict[str, int], int]:
    """Byte offset of every block, and the arena's size.

    Largest first, each at the lowest offset where it meets no block that lives at the same time.
    """
    offsets: dict[str, int] = {}
    placed: list[Block] = []
    for block in sorted(blocks, key=lambda b: (-b.bytes, b.first, b.name)):
        offset = 0
        for other in sorted(placed, key=lambda b: offsets[b.name]):
            together = other.first <= block.last and block.first <= other.last
            if together and offsets[other.name] < offset + block.bytes:
                offset = max(offset, round_up(offsets[other.name] + other.bytes, ALIGN))
        offsets[block.name] = offset
        placed.append(block)
    size = max((offsets[b.name] + b.bytes for b in blocks), default=0)
    return offsets, round_up(size, ALIGN)
