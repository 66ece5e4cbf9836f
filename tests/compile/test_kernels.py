"""Every compiled kernel against the reference, bit for bit, on every target that this machine runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import integer_graphs, random_input, random_integer_graph
from tvm.runtime.vm import VirtualMachine

from intcert import targets
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels.conv2d import choose_tile
from intcert.compile.kernels.dot import pack_weights
from intcert.compile.layout import round_up
from intcert.compile.library import compile_module
from intcert.compile.lower import lower
from intcert.compile.nodes import Add, Clamp, Flatten, InputQuantize, Linear, LogitScale, RequantQ15
from intcert.compile.plan import Plan, make_plan
from intcert.compile.reference import ReferenceSession, activations, run
from intcert.runtime.noise import noise_law
from intcert.targets import Target

RUNNABLE = targets.runnable()
KEY = 0xFEDCBA9876543210


def machine(graph: IntegerGraph, plan: Plan, target: Target) -> VirtualMachine:
    return VirtualMachine(compile_module(lower(graph, plan), target).jit(), tvm.cpu())


def logits(vm: VirtualMachine, graph: IntegerGraph, x: np.ndarray) -> np.ndarray:
    out = tvm.runtime.tensor(np.full((len(x), graph.classes), 12345, np.int32))
    return vm["logits"](tvm.runtime.tensor(x), out).numpy()


def counts(vm: VirtualMachine, graph: IntegerGraph, image: np.ndarray, first: int, n: int) -> np.ndarray:
    out = tvm.runtime.tensor(np.full((-(-n // 64), graph.classes), 12345, np.int32))
    return vm["counts"](tvm.runtime.tensor(image), KEY - 2**64, first, n, out).numpy()


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@given(graph=integer_graphs(), batch=st.sampled_from([1, 3, 16]), seed=st.integers(0, 2**16))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_logits_of_random_graphs(target: Target, graph: IntegerGraph, batch: int, seed: int) -> None:
    vm = machine(graph, make_plan(graph, noise_law("0.25"), target, batch), target)
    for n in (1, 7, 32):
        x = random_input(graph, n, seed)
        np.testing.assert_array_equal(logits(vm, graph, x), run(graph, x))


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
def test_kernels_that_llvm_could_inline(target: Target) -> None:
    """Kernels this small were once inlined into each other, and loads moved before the stores they depend on."""
    graph = random_integer_graph(1045, "q15")
    vm = machine(graph, make_plan(graph, noise_law("0.25"), target, 1), target)
    x = random_input(graph, 6, 1045)
    np.testing.assert_array_equal(logits(vm, graph, x), run(graph, x))


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("offset", [-32636, 32636])
def test_sums_at_the_ends_of_16_bits(target: Target, offset: int) -> None:
    """An offset that, with the farthest terms, just fits; one more is refused."""
    none, signed = np.zeros(0, np.int16), Clamp("int8", -127, 127)
    pixels = RequantQ15(np.full(2, 1000, np.int16), np.zeros(2, np.int8), none)
    moved = RequantQ15(none, np.zeros(0, np.int8), np.array([256], np.int16), offset)
    scale = LogitScale(np.full(3, 2**30, np.int32), np.full(3, 2**29, np.int64))
    weight = np.arange(-96, 96, dtype=np.int8).reshape(3, 64)
    nodes = (
        InputQuantize(np.zeros(2, np.int32), pixels, signed),
        Add((0,), moved, signed),
        Flatten(1),
        Linear(2, weight, np.zeros(3, np.int32), scale, None),
    )
    graph = IntegerGraph((4, 8, 2), "q15", nodes, ("a", "b", "c", "d"))
    vm = machine(graph, make_plan(graph, noise_law("0.25"), target, 2), target)
    x = random_input(graph, 7, 5)
    np.testing.assert_array_equal(logits(vm, graph, x), run(graph, x))


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_logits_of_many_random_graphs(target: Target, scheme: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(1000, 1060):
        graph = random_integer_graph(seed, scheme)
        seen.update(type(node).__name__ for node in graph.nodes)
        vm = machine(graph, make_plan(graph, noise_law("0.25"), target, 1 + seed % 5), target)
        x = random_input(graph, 6, seed)
        np.testing.assert_array_equal(logits(vm, graph, x), run(graph, x), err_msg=f"seed {seed}")
    assert min(seen.values()) > 20
    assert len(seen) == 10


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("sigma", ["0.12", "0.25", "0.5", "1.00"])
def test_counts(target: Target, sigma: str) -> None:
    """The device's noise, argmax and rows; a dimension that is no multiple of 64; sigma 0.5 and 1 use wider cells."""
    law = noise_law(sigma)
    graph = next(g for g in (random_integer_graph(seed, "q15") for seed in range(100)) if g.dimension % 128 > 64)
    reference = ReferenceSession(graph, law)
    image = np.random.default_rng(5).integers(0, 256, graph.input_shape).astype(np.uint8)
    vms = [machine(graph, make_plan(graph, law, target, batch), target) for batch in (3, 64)]
    for first, n in ((0, 200), (100, 129), (2**32 - 70, 128), (2**40, 1)):
        expected = reference.counts(image, KEY, first, n)
        assert expected.sum() == n
        for vm in vms:
            np.testing.assert_array_equal(counts(vm, graph, image, first, n), expected)


def test_wrong_calls_are_errors() -> None:
    target = RUNNABLE[0]
    graph = random_integer_graph(3, "q31")
    vm = machine(graph, make_plan(graph, noise_law("0.25"), target, 2), target)
    image = tvm.runtime.tensor(np.zeros(graph.input_shape, np.uint8))
    out = tvm.runtime.tensor(np.zeros((2, graph.classes), np.int32))
    for first, n, message in ((0, 0, "n must be positive"), (-1, 100, "first must not"), (0, 129, "ceil")):
        with pytest.raises(RuntimeError, match=message):
            vm["counts"](image, 1, first, n, out)


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
def test_layers_leave_every_activation_where_the_plan_says(target: Target) -> None:
    """The per-layer view: every node's result, seen right after its step, equals the reference's."""
    for seed in range(6):
        graph = random_integer_graph(seed, ("q15", "q31")[seed % 2])
        plan = make_plan(graph, noise_law("0.25"), target, 2)
        vm = machine(graph, plan, target)
        x = random_input(graph, plan.batch, seed)
        arena = np.zeros(plan.arena_bytes, np.uint8)
        arena[plan.input_offset :][: x.nbytes] = x.reshape(-1).view(np.uint8)
        expected = activations(graph, x)
        for i, step in enumerate(plan.steps):
            arena = vm["layers"](i, i + 1, tvm.runtime.tensor(arena)).numpy()
            layout = step.layout
            raw = arena[step.result :][: plan.batch * layout.bytes].view(layout.dtype)
            seen = raw.reshape(plan.batch, layout.height, layout.width, layout.stride)[..., : layout.channels]
            np.testing.assert_array_equal(seen.reshape(expected[i].shape), expected[i], err_msg=step.name)


def test_kernels_have_no_float_and_one_function_serves_equal_layers() -> None:
    graph = random_integer_graph(11, "q15")
    module = lower(graph, make_plan(graph, noise_law("0.25"), RUNNABLE[0], 2))
    assert "float" not in module.script()


def test_equal_layers_share_a_function() -> None:
    graph = random_integer_graph(11, "q15")
    first, second = (make_plan(graph, noise_law("0.25"), RUNNABLE[0], 2) for _ in range(2))
    for a, b in zip(first.steps, second.steps, strict=True):
        assert a.kernel.function is b.kernel.function


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: t.name)
def test_tiles_fit_the_registers(target: Target) -> None:
    unit = target.dot
    for width in (1, 2, 7, 8, 14, 16, 28, 32, 56, 112, 3136):
        for registers in (1, 2, 3, 4, 8, 16, 128):
            for grouped in (False, True):
                tile = choose_tile(unit, width, registers, grouped)
                assert 1 <= tile.columns <= width
                assert 1 <= tile.blocks <= (1 if grouped else registers)
                assert tile.columns * tile.blocks <= unit.accumulators
                # Arrays of a kilobyte would leave the stack for the heap.
                assert tile.columns * tile.blocks * unit.lanes * 4 < 1024


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("blocks", [1, 2])
def test_packed_weights_hold_every_weight_once(target: Target, blocks: int) -> None:
    unit = target.dot
    outputs, inner = unit.lanes * 2, round_up(5, unit.depth)
    weight = np.arange(outputs * 2 * inner).reshape(outputs, 2, inner) % 251 - 125
    packed = pack_weights(unit, weight.astype(np.int8), blocks)
    assert packed.dtype == unit.weight
    for o in range(outputs):
        for k in range(inner):
            lane, at = o % unit.lanes, k % unit.depth
            position = at // 2 * 2 * unit.lanes + 2 * lane + at % 2 if unit.pairs else unit.depth * lane + at
            block, register = divmod(o // unit.lanes, blocks)
            assert packed[block, 1, k // unit.depth, register, position] == weight[o, 1, k]
