"""The GPU's kernels, launched as on a GPU, on NumPy instead of one: equal to the reference, bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from random_models import convolution_graph, random_input, random_integer_graph
from simt import Machine, SimtError

from intcert.compile.frontend import import_program
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels.cuda.tile import choose_tile, tiles_for
from intcert.compile.library_cuda import device_target
from intcert.compile.lower_cuda import lower_cuda
from intcert.compile.nodes import Conv2d
from intcert.compile.plan import Plan, make_plan
from intcert.compile.reference import ReferenceSession, activations, run
from intcert.runtime.noise import noise_law
from intcert.targets import CudaTarget, find

TARGETS = [find("cuda-sm75"), find("cuda-sm80")]  # the others differ from the latter in nothing that kernels ask
DEMO = Path(__file__).parents[2] / "cli" / "demo" / "resnet20.pt2"
KEY = 0xFEDCBA9876543210

each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)


class Emulated:
    """A planned graph on the emulated GPU."""

    def __init__(self, graph: IntegerGraph, target: CudaTarget, chunk: int, sigma: str = "0.25") -> None:
        self.graph = graph
        self.plan: Plan = make_plan(graph, noise_law(sigma), target)
        self.machine = Machine(lower_cuda(graph, self.plan, device_target(target)))
        # Uninitialized memory holds anything.
        self.arena = np.random.default_rng(0).integers(0, 256, (chunk, self.plan.arena_bytes)).astype(np.uint8)

    def logits(self, x: np.ndarray) -> np.ndarray:
        out = np.full((len(x), self.graph.classes), 12345, np.int32)
        self.machine.run("logits_host", x, self.plan.blob.copy(), out, self.arena)
        return out

    def counts(self, image: np.ndarray, first: int, n: int) -> np.ndarray:
        out = np.full((-(-n // 64), self.graph.classes), 12345, np.int32)
        self.machine.run("counts_host", image, KEY - 2**64, first, n, self.plan.blob.copy(), out, self.arena)
        return out


@each_target
@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_logits_of_random_graphs(target: CudaTarget, scheme: str) -> None:
    for seed in range(5):
        graph = random_integer_graph(seed, scheme)
        x = random_input(graph, 5, seed)
        np.testing.assert_array_equal(Emulated(graph, target, 3).logits(x), run(graph, x), err_msg=f"seed {seed}")


@pytest.mark.slow
@each_target
@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_logits_of_many_random_graphs(target: CudaTarget, scheme: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(1000, 1060):
        graph = random_integer_graph(seed, scheme)
        seen.update(type(node).__name__ for node in graph.nodes)
        x = random_input(graph, 5, seed)
        emulated = Emulated(graph, target, 1 + seed % 5)
        np.testing.assert_array_equal(emulated.logits(x), run(graph, x), err_msg=f"seed {seed}")
    assert len(seen) == 10
    assert min(seen.values()) > 20


# Slices of 32 and 64 bytes, one and many of them; granules of 4, 8 and 16 bytes; one and several tiles of columns, and
# the widest, which two by two warps share; a sum and a vector of many channels.
CONVOLUTIONS = {
    "three_channels": ((9, 7, 3), 16, (3, 3), {}),
    "three_channels_7x7": ((13, 12, 3), 64, (7, 7), {"stride": (2, 2)}),
    "six_channels": ((8, 8, 6), 20, (3, 2), {"dtype": "int8"}),
    "sixteen_channels": ((8, 9, 16), 16, (3, 3), {"residual": 1}),
    "odd_channels": ((6, 6, 37), 48, (3, 3), {"dilation": (2, 1)}),
    "pointwise": ((7, 7, 64), 80, (1, 1), {"residual": 2}),
    "strided": ((9, 9, 32), 64, (1, 1), {"stride": (2, 2)}),
    "wide": ((6, 6, 64), 128, (3, 3), {"residual": 1}),
    "grouped": ((7, 7, 24), 36, (3, 3), {"groups": 6, "dtype": "int8"}),
    "depthwise": ((7, 7, 24), 24, (3, 3), {"groups": 24, "residual": 1}),
    "depthwise_twice": ((7, 7, 6), 12, (3, 3), {"groups": 6}),
}


@each_target
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(target: CudaTarget, name: str) -> None:
    shape, outputs, kernel, options = CONVOLUTIONS[name]
    for scheme in ("q15", "q31"):
        graph = convolution_graph(7, scheme, shape, outputs, kernel, **options)
        x = random_input(graph, 4, 7)
        expected = run(graph, x)
        assert len(np.unique(expected)) > 30, "the results are too few to prove much"
        np.testing.assert_array_equal(Emulated(graph, target, 3).logits(x), expected)


@pytest.mark.parametrize("sigma", ["0.12", "0.25", "0.5", "1.00"])
def test_counts(sigma: str) -> None:
    """Noise, argmax and rows on the device: dimensions in whole Philox blocks and not, any end of a chunk."""
    law = noise_law(sigma)
    for whole in (True, False):
        graph = next(g for g in (random_integer_graph(s, "q15") for s in range(100)) if (g.dimension % 8 == 0) is whole)
        reference = ReferenceSession(graph, law)
        image = np.random.default_rng(5).integers(0, 256, graph.input_shape).astype(np.uint8)
        emulated = Emulated(graph, TARGETS[1], 64, sigma)
        for first, n in ((0, 150), (2**32 - 70, 128), (2**40, 1)):
            np.testing.assert_array_equal(emulated.counts(image, first, n), reference.counts(image, KEY, first, n))


def test_many_classes() -> None:
    """A row of counts has more classes than the block that writes it has threads."""
    graph = convolution_graph(1, "q15", (3, 3, 3), 16, (3, 3))
    assert graph.classes > 2 * 64
    image = np.full(graph.input_shape, 90, np.uint8)
    expected = ReferenceSession(graph, noise_law("0.25")).counts(image, KEY, 3, 70)
    np.testing.assert_array_equal(Emulated(graph, TARGETS[1], 64).counts(image, 3, 70), expected)


def test_wrong_calls_are_errors() -> None:
    graph = random_integer_graph(3, "q31")
    emulated, odd = Emulated(graph, TARGETS[1], 64), Emulated(graph, TARGETS[1], 60)
    image = np.zeros(graph.input_shape, np.uint8)
    for machine, first, n, message in (
        (emulated, 0, 0, "n must be positive"),
        (emulated, -1, 100, "first must not"),
        (odd, 0, 100, "multiple of 64"),
    ):
        with pytest.raises(SimtError, match=message):
            machine.counts(image, first, n)


@each_target
def test_layers_leave_every_activation_where_the_plan_says(target: CudaTarget) -> None:
    for seed in range(3):
        graph = random_integer_graph(seed, ("q15", "q31")[seed % 2])
        emulated, samples = Emulated(graph, target, 2), 2
        plan, arena = emulated.plan, emulated.arena.reshape(-1)
        x = random_input(graph, samples, seed)
        arena[plan.input_offset * samples :][: x.nbytes] = x.reshape(-1).view(np.uint8)
        for i, (step, expected) in enumerate(zip(plan.steps, activations(graph, x), strict=True)):
            emulated.machine.run("layers_host", i, i + 1, plan.blob.copy(), emulated.arena)
            layout = step.layout
            raw = arena[step.result * samples :][: samples * layout.bytes].view(layout.dtype)
            seen = raw.reshape(samples, layout.height, layout.width, layout.stride)[..., : layout.channels]
            np.testing.assert_array_equal(seen.reshape(expected.shape), expected, err_msg=step.name)


@pytest.mark.slow
@each_target
@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_demo(target: CudaTarget, scheme: str) -> None:
    """The shipped ResNet-20: logits of a few images, and counts."""
    graph = import_program(DEMO, scheme=scheme)
    emulated = Emulated(graph, target, 64)
    image = np.random.default_rng(11).integers(0, 256, (8, 8, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    x = (image + np.random.default_rng(2).normal(0, 64, (3, 32, 32, 3))).astype(np.int16)
    np.testing.assert_array_equal(emulated.logits(x), run(graph, x))
    expected = ReferenceSession(graph, noise_law("0.25")).counts(image, KEY, 100, 66)
    np.testing.assert_array_equal(emulated.counts(image, 100, 66), expected)


@pytest.mark.parametrize("name", ["cuda-sm75", "cuda-sm80", "cuda-sm90"])
@pytest.mark.parametrize("inner", [4, 36, 144, 196, 288, 576, 2304])
@pytest.mark.parametrize("channels", [16, 32, 48, 64, 80, 128, 1024])
def test_tiles_fit_the_device(name: str, inner: int, channels: int) -> None:
    target, granule = find(name), {4: 4, 36: 4, 196: 4}.get(inner, 16)
    tiles = tiles_for(inner, channels, granule, target)
    assert tiles[0] == choose_tile(inner, channels, target)
    assert len(set(tiles)) == len(tiles) > 1
    for tile in tiles:
        assert channels % tile.columns == 0
        assert tile.shared_bytes <= target.shared_memory
        assert tile.row_warps * tile.column_warps == 4
        assert tile.warp[0] % 16 == tile.warp[1] % 16 == 0
        assert tile.copies(granule) * granule * 128 == tile.rows * tile.depth


def test_packed_weights_hold_every_weight_once() -> None:
    shape, outputs, kernel, _ = CONVOLUTIONS["odd_channels"]
    graph = convolution_graph(7, "q15", shape, outputs, kernel)
    node = next(node for node in graph.nodes if isinstance(node, Conv2d))
    plan = make_plan(graph, noise_law("0.25"), TARGETS[1])
    packed = plan.steps[1].kernel.constants[0].view(np.int8)
    assert np.array_equal(np.bincount(packed.view(np.uint8), minlength=256)[1:], _occurrences(node.weight)[1:])


def _occurrences(values: np.ndarray) -> np.ndarray:
    return np.bincount(values.reshape(-1).view(np.uint8), minlength=256)
