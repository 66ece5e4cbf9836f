"""The inner loops of ARM convolutions, as LLVM wrote them."""

from __future__ import annotations

import re

import pytest
import tvm
from random_models import convolution_graph
from tvm import tirx

from intcert.compile.library import tvm_target
from intcert.compile.lower import lower
from intcert.compile.plan import make_plan
from intcert.runtime.noise import noise_law
from intcert.targets import arm, find

NAMES = [target.name for target in arm.TARGETS]
QUICK = ("arm-a7", "arm-a72", "arm-a76", "arm-v8.6")  # one for each dot unit
LOOPS = [  # input shape, output channels, kernel, options
    pytest.param((8, 8, 64), 64, (3, 3), {"residual": 1}, id="8x8x64"),
    pytest.param((32, 32, 16), 16, (3, 3), {}, id="32x32x16"),
    pytest.param((16, 16, 32), 32, (3, 3), {"stride": (2, 2)}, id="16x16x32, stride 2"),
    pytest.param((7, 7, 96), 160, (1, 1), {}, id="7x7x96, pointwise"),
]
#: What each unit's products look like.
PRODUCT = {
    "vmlal": r"vm(ull|lal)\.s8\s",
    "smlal": r"sm(ull|lal)2?\s+v",
    "sdot": r"sdot\s",
    "usdot": r"([su][us]dot|usmmla)\s",
}


def inner_loops(text: str) -> list[list[str]]:
    """Instructions of the loops that have no loop inside, from LLVM's assembly."""
    lines = [line.strip() for line in text.splitlines() if line.startswith(("\t", ".LBB"))]
    labels = {line.partition(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    branch = re.compile(r"(?:b\.?\w\w|cbn?z|tbn?z)\s.*?(\.LBB\w+)$")
    found = [(labels[m[1]], i) for i, line in enumerate(lines) if (m := branch.match(line)) and m[1] in labels]
    loops = [(first, last) for first, last in found if first < last]
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[line for line in lines[first + 1 : last + 1] if line[0] not in ".@/"] for first, last in innermost]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
@pytest.mark.parametrize(("shape", "outputs", "kernel", "options"), LOOPS)
def test_inner_loops(
    name: str, shape: tuple[int, int, int], outputs: int, kernel: tuple[int, int], options: dict
) -> None:
    """The unit's instructions, no calls, and nothing that goes to the stack."""
    target = find(name)
    graph = convolution_graph(5, "q15", shape, outputs, kernel, **options)
    plan = make_plan(graph, noise_law("0.25"), target, 2)
    functions = {
        name: function
        for name, function in lower(graph, plan).functions.items()
        if name.name_hint.startswith(("quantize", "conv2d", "flatten", "network", "layers"))
        and isinstance(function, tirx.PrimFunc)
    }
    text = tvm.compile(tvm.IRModule(functions), tvm_target(target)).mod.inspect_source("asm")
    product = re.compile(PRODUCT[target.dot.name])
    loops = [loop for loop in inner_loops(text) if any(product.match(line) for line in loop)]
    assert loops
    for loop in loops:
        assert not [line for line in loop if re.match(r"(blx?|svc)\s", line) or re.search(r"\bsp\b", line)]
