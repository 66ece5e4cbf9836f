"""ARM kernels, executed under QEMU and compared with the reference bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulation import Board, require_board
from random_models import convolution_graph, random_input, random_integer_graph

from intcert.compile.graph import IntegerGraph
from intcert.compile.nodes import NODE_KINDS, Clamp, Flatten, InputQuantize, RequantQ15
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


@pytest.mark.parametrize("name", ["arm-a7", "arm-a72"])
def test_requantization_of_every_16_bit_value(name: str, tmp_path: Path) -> None:
    """The instructions' rounding and saturation, exhaustively: all v with the multipliers at the ends of their range.

    The first node's v is 16 x + b: with b = 0 .. 15 in as many channels, 8192 pixels reach each value.
    """
    multipliers = np.array([257, 2048, 2049, 16384, 32767], np.int16)
    offsets = np.arange(16)
    channels = len(multipliers) * len(offsets)
    requant = RequantQ15(np.repeat(multipliers, len(offsets)), np.zeros(channels, np.int8), np.zeros(0, np.int16))
    bias = np.tile(offsets, len(multipliers)).astype(np.int32)
    x = np.broadcast_to(np.arange(-4096, 4096, dtype=np.int16).reshape(1, 64, 128, 1), (1, 64, 128, channels))
    for clamp in (Clamp("uint8", 0, 255), Clamp("int8", -128, 127)):
        nodes = (InputQuantize(bias, requant, clamp), Flatten(0))
        graph = IntegerGraph((64, 128, channels), "q15", nodes, ("quantize", "flatten"))
        folder = tmp_path / clamp.dtype
        folder.mkdir()
        np.testing.assert_array_equal(board(graph, find(name), folder, 1).logits(x), run(graph, x))
