"""Placement of everything that one chunk needs in memory: activations and scratch share an arena by their lifetimes."""

from __future__ import annotations

from dataclasses import dataclass

from intcert.compile.layout import round_up

ALIGN = 64  # bytes: a cache line, and the widest vector
PAGE = 4096  # bytes: a load waits for an older store to the same place of another page, as if the two were one
STAGGER = 17 * ALIGN  # bytes, modulo a page, from the begin of one block to that of the next


@dataclass(frozen=True)
class Block:
    """Bytes that must be there from step ``first`` through step ``last``."""

    name: str
    bytes: int
    first: int
    last: int


def place(blocks: list[Block]) -> tuple[dict[str, int], int]:
    """Byte offset of every block, and the arena's size.

    Largest first, each at the lowest offset where it meets no block that lives at the same time. Blocks that may span
    half a page begin at different places of a page, in the order of their first steps, so that what a kernel writes
    does not hold up what it reads.
    """
    ordered = sorted(blocks, key=lambda b: (b.first, b.name))
    places = {b.name: STAGGER * number % PAGE for number, b in enumerate(ordered) if b.bytes >= PAGE // 2}
    offsets: dict[str, int] = {}
    placed: list[Block] = []

    def fitting(block: Block, least: int) -> int:
        """The first offset from ``least`` on where the block may begin."""
        if block.name in places:
            return least + (places[block.name] - least) % PAGE
        return round_up(least, ALIGN)

    for block in sorted(blocks, key=lambda b: (-b.bytes, b.first, b.name)):
        offset = fitting(block, 0)
        for other in sorted(placed, key=lambda b: offsets[b.name]):
            together = other.first <= block.last and block.first <= other.last
            begin, end = offsets[other.name], offsets[other.name] + other.bytes
            if together and begin < offset + block.bytes and offset < end:
                offset = fitting(block, end)
        offsets[block.name] = offset
        placed.append(block)
    size = max((offsets[b.name] + b.bytes for b in blocks), default=0)
    return offsets, round_up(size, ALIGN)
