"""The inner loops of ARM convolutions, as LLVM wrote them."""

from __future__ import annotations

import pytest
from arm_loops import CALL, STACK, inner_loops, product_loops
from random_models import convolution_graph

from intcert.targets import arm, find

QUICK = ("arm-a7", "arm-a72", "arm-a76", "arm-v8.6")  # one for each unit
NAMES = [
    pytest.param(target.name, marks=() if target.name in QUICK else pytest.mark.slow, id=target.name)
    for target in arm.TARGETS
]
LOOPS = [  # input shape, output channels, kernel, options
    pytest.param((8, 8, 64), 64, (3, 3), {"residual": 1}, id="8x8x64"),
    pytest.param((32, 32, 16), 16, (3, 3), {}, id="32x32x16", marks=pytest.mark.slow),
    pytest.param((16, 16, 32), 32, (3, 3), {"stride": (2, 2)}, id="16x16x32, stride 2"),
    pytest.param((7, 7, 96), 160, (1, 1), {}, id="7x7x96, pointwise", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "outputs", "kernel", "options"), LOOPS)
def test_inner_loops(
    name: str, shape: tuple[int, int, int], outputs: int, kernel: tuple[int, int], options: dict
) -> None:
    """The unit's instructions, no calls, and nothing that goes to the stack."""
    loops = product_loops(convolution_graph(5, "q15", shape, outputs, kernel, **options), find(name))
    assert loops
    for loop in loops:
        assert not [line for line in loop if CALL.match(line) or STACK.search(line)]


def test_a_loop_with_a_spill_is_seen() -> None:
    text = (
        ".LBB0_1:\n\tmov\tx0, #4\n.LBB0_2:\n\tstr\tq0, [sp, #16]\n\tbl\tmemset\n\tb.ne\t.LBB0_2\n\tcbnz\tx0, .LBB0_1\n"
    )
    (loop,) = inner_loops(text)
    assert [bool(STACK.search(line)) for line in loop] == [True, False, False]
    assert [bool(CALL.match(line)) for line in loop] == [False, True, False]
