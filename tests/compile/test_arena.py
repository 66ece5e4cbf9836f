"""The arena planner: nothing that lives at the same time may overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from intcert.compile.arena import ALIGN, PAGE, Block, place


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Block]:
    blocks = []
    for i in range(draw(st.integers(0, 20))):
        first = draw(st.integers(-1, 10))
        size = draw(st.one_of(st.integers(1, 500), st.integers(1, 3 * PAGE)))
        blocks.append(Block(f"b{i}", size, first, draw(st.integers(first, 12))))
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


def test_what_a_step_writes_and_reads_begins_at_different_places_of_a_page() -> None:
    blocks = [Block(f"r{i}", 4 * PAGE, i, i + 2) for i in range(12)]
    offsets, _ = place(blocks)
    for i in range(10):
        assert len({offsets[f"r{j}"] % PAGE for j in range(i, i + 3)}) == 3
