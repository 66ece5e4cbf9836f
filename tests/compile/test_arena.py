"""The arena planner: nothing that lives at the same time may overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from intcert.compile.arena import ALIGN, Block, place


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Block]:
    blocks = []
    for i in range(draw(st.integers(0, 20))):
        first = draw(st.integers(-1, 10))
        blocks.append(Block(f"b{i}", draw(st.integers(1, 500)), first, draw(st.integers(first, 12))))
    return blocks


@given(lifetimes())
def test_living_blocks_never_overlap(blocks: list[Block]) -> None:
    offsets, size = place(blocks)
    assert size % ALIGN == 0
    for i, a in enumerate(blocks):
        assert offsets[a.name] % ALIGN == 0
        assert 0 <= offsets[a.name] <= offsets[a.name] + a.bytes <= size
        for b in blocks[:i]:
            together = a.first <= b.last and b.first <= a.last
            apart = offsets[a.name] + a.bytes <= offsets[b.name] or offsets[b.name] + b.bytes <= offsets[a.name]
            assert apart or not together


def test_a_chain_needs_two_buffers() -> None:
    """Of a chain of equal results only two live at a time."""
    blocks = [Block(f"r{i}", 100, i, i + 1) for i in range(10)]
    assert place(blocks)[1] == 2 * 128


def test_placement_is_reproducible() -> None:
    blocks = [Block(f"r{i}", 10 * (i % 3 + 1), i, i + 2) for i in range(9)]
    assert place(blocks) == place(list(reversed(blocks)))
