"""ARM kernels: executed under QEMU and compared with the reference bit for bit, and their inner loops as LLVM wrote
them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tvm
from random_models import convolution_graph, random_input, random_integer_graph
from tvm import tirx

from boards import Board, require_board
from intcert.compile.graph import IntegerGraph
from intcert.compile.library import tvm_target
from intcert.compile.lower import lower
from intcert.compile.nodes import NODE_KINDS
from intcert.compile.plan import make_plan
from intcert.compile.reference import ReferenceSession, run
from intcert.runtime.noise import noise_law
from intcert.targets import Target, arm, find

KEY = 0xFEDCBA9876543210
#: The processor that QEMU emulates for each target: it refuses instructions that the real one lacks, too.
CPU = {
    "arm-a7": "cortex-a7",
    "arm-a9": "cortex-a9",
    "arm-a15": "cortex-a15",
    "arm-a53": "cortex-a53",
    "arm-a72": "cortex-a72",
    "arm-a55": "cortex-a76",
    "arm-a76": "cortex-a76",
    "arm-a78": "cortex-a76",
    "arm-v8.6": "max",
}
QUICK = ("arm-a7", "arm-a72", "arm-a76", "arm-v8.6")  # one for each dot unit
SEEDS = (2, 13)  # together these graphs have every kind of node


LOOPS = [  # input shape, output channels, kernel, options
    pytest.param((8, 8, 64), 64, (3, 3), {"residual": 1}, id="8x8x64"),
    pytest.param((32, 32, 16), 16, (3, 3), {}, id="32x32x16"),
    pytest.param((16, 16, 32), 32, (3, 3), {"stride": (2, 2)}, id="16x16x32, stride 2"),
    pytest.param((7, 7, 96), 160, (1, 1), {}, id="7x7x96, pointwise"),
]
#: What each unit's products look like.
PRODUCT = {"vmlal": r"vm(ull|lal)\.s8\s", "smlal": r"sm(ull|lal)2?\s+v", "sdot": r"sdot\s", "usdot": r"[su][us]dot\s"}


def inner_loops(text: str) -> list[list[str]]:
    """Instructions of the loops that have no loop inside, from LLVM's assembly."""
    lines = [line.strip() for line in text.splitlines() if line.startswith(("\t", ".LBB"))]
    labels = {line.partition(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    branch = re.compile(r"(?:b\.?\w\w|cbn?z|tbn?z)\s.*?(\.LBB\w+)$")
    found = [(labels[m[1]], i) for i, line in enumerate(lines) if (m := branch.match(line)) and m[1] in labels]
    loops = [(first, last) for first, last in found if first < last]
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[line for line in lines[first + 1 : last + 1] if line[0] not in ".@/"] for first, last in innermost]


def board(graph: IntegerGraph, target: Target, folder: Path, batch: int = 2, sigma: str = "0.25") -> Board:
    require_board()
    return Board.build(graph, make_plan(graph, noise_law(sigma), target, batch), target, CPU[target.name], folder)


def check_logits(graph: IntegerGraph, target: Target, folder: Path, batch: int = 2) -> None:
    x = random_input(graph, 5, 1)
    np.testing.assert_array_equal(board(graph, target, folder, batch).logits(x), run(graph, x))


def test_every_target_has_an_emulated_processor() -> None:
    assert CPU.keys() == {target.name for target in arm.TARGETS}


def test_the_graphs_have_every_kind_of_node() -> None:
    for scheme in ("q15", "q31"):
        nodes = [node for seed in SEEDS for node in random_integer_graph(seed, scheme).nodes]
        assert {type(node).__name__ for node in nodes} == set(NODE_KINDS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scheme", ["q15", "q31"])
@pytest.mark.parametrize("name", QUICK)
def test_logits_of_random_graphs(name: str, scheme: str, seed: int, tmp_path: Path) -> None:
    check_logits(random_integer_graph(seed, scheme), find(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["q15", "q31"])
@pytest.mark.parametrize("name", CPU)
def test_logits_of_many_random_graphs(name: str, scheme: str, tmp_path: Path) -> None:
    for seed in range(2000, 2015):
        check_logits(random_integer_graph(seed, scheme), find(name), tmp_path, 1 + seed % 3)


@pytest.mark.parametrize("sigma", ["0.25", "1.00"])
@pytest.mark.parametrize("name", ["arm-a7", "arm-a72"])
def test_counts(name: str, sigma: str, tmp_path: Path) -> None:
    """The device's noise, argmax and rows; a dimension that is no multiple of 64."""
    graph = next(g for g in (random_integer_graph(seed, "q15") for seed in range(100)) if g.dimension % 128 > 64)
    machine, reference = board(graph, find(name), tmp_path, 16, sigma), ReferenceSession(graph, noise_law(sigma))
    image = np.random.default_rng(5).integers(0, 256, graph.input_shape).astype(np.uint8)
    for first, n in ((0, 200), (2**32 - 70, 128), (2**40, 1)):
        expected = reference.counts(image, KEY, first, n)
        np.testing.assert_array_equal(machine.counts(image, KEY, first, n), expected)


def test_the_emulated_board_lacks_what_its_processor_lacks(tmp_path: Path) -> None:
    """The control of the tests above: dot products on a Cortex-A72 end with SIGILL."""
    require_board()
    graph = convolution_graph(5, "q15", (4, 4, 16), 16, (3, 3))
    plan = make_plan(graph, noise_law("0.25"), find("arm-a76"), 1)
    machine = Board.build(graph, plan, find("arm-a76"), "cortex-a72", tmp_path)
    with pytest.raises(RuntimeError, match="exit code -4"):
        machine.logits(random_input(graph, 1, 1))


@pytest.mark.parametrize("name", CPU)
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
