"""The reference against other implementations: torch's convolutions and pools on exact numbers, Python's integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import integer_graphs, random_input

from intcert.compile.graph import IntegerGraph
from intcert.compile.infer import input_scale
from intcert.compile.nodes import (
    Add,
    AvgPool2d,
    Clamp,
    Concat,
    Conv2d,
    Flatten,
    InputQuantize,
    Linear,
    LogitScale,
    MaxPool2d,
    Node,
    Pad,
    Requant,
    RequantQ15,
    RequantQ31,
    Slice,
    operands,
)
from intcert.compile.reference import activations, run
from intcert.compile.reference.requantize import requantize, scale_logits

HALF = Fraction(1, 2)


def floor_half_up(value: Fraction) -> int:
    return (value + HALF).__floor__()


def by_definition(requant: Requant, clamp: Clamp, accumulator: int | None, terms: list[int], entry: int = 0) -> int:
    """One requantization as docs/arithmetic.md words it, on Python's integers and fractions alone."""
    if isinstance(requant, RequantQ31):
        total = int(requant.rounding[entry])
        if accumulator is not None:
            total += accumulator * int(requant.multiplier[entry])
        total += sum((a << 8) * int(m) for a, m in zip(terms, requant.term_multipliers[:, entry], strict=True))
        exact = (Fraction(total) / 2 ** int(requant.shift[entry])).__floor__()
    else:
        eighths = 0
        if accumulator is not None:
            shifted = (Fraction(accumulator) / 2 ** int(requant.shift[entry])).__floor__()
            shifted = max(-(2**15), min(2**15 - 1, shifted))
            eighths = floor_half_up(Fraction(shifted * int(requant.multiplier[entry]), 2**15))
        if terms:
            for a, m in zip(terms, requant.term_multipliers, strict=True):
                eighths += floor_half_up(Fraction(a * 2**7 * int(m), 2**15))
            exact = Fraction(eighths + requant.offset, 8).__floor__()
        else:
            exact = eighths
    return max(clamp.lo, min(clamp.hi, exact))


stored = st.integers(-128, 255)


@given(
    accumulator=st.one_of(st.none(), st.integers(-(2**31) + 1, 2**31 - 1)),
    multiplier=st.integers(1, 16383),
    shift=st.integers(0, 30),
    terms=st.lists(st.tuples(stored, st.integers(1, 2000)), max_size=3),
    offset=st.integers(-500, 500),
)
@settings(max_examples=300, deadline=None)
def test_q15_is_its_definition(
    accumulator: int | None, multiplier: int, shift: int, terms: list[tuple[int, int]], offset: int
) -> None:
    if accumulator is None and not terms:
        return
    channels = 0 if accumulator is None else 1
    requant = RequantQ15(
        np.full(channels, multiplier, np.int16),
        np.full(channels, shift, np.int8),
        np.array([m for _, m in terms], np.int16),
        offset,
    )
    clamp = Clamp("int8", -128, 127)
    given_terms = [np.array([a], np.int16) for a, _ in terms]
    given_accumulator = None if accumulator is None else np.array([accumulator])
    result = requantize(requant, clamp, given_accumulator, given_terms)
    assert result.dtype == np.int8
    assert result.tolist() == [by_definition(requant, clamp, accumulator, [a for a, _ in terms])]


@given(
    accumulator=st.one_of(st.none(), st.integers(-(2**31) + 1, 2**31 - 1)),
    multiplier=st.integers(-(2**30), 2**30),
    shift=st.integers(32, 62),
    terms=st.lists(st.tuples(stored, st.integers(-(2**31) + 1, 2**31 - 1)), max_size=3),
    rounding=st.integers(-(2**60), 2**60),
)
@settings(max_examples=300, deadline=None)
def test_q31_is_its_definition(
    accumulator: int | None, multiplier: int, shift: int, terms: list[tuple[int, int]], rounding: int
) -> None:
    requant = RequantQ31(
        np.full(0 if accumulator is None else 1, multiplier, np.int32),
        np.array([[m] for _, m in terms], np.int32).reshape(-1, 1),
        np.array([rounding]),
        np.array([shift], np.int8),
    )
    clamp = Clamp("uint8", 3, 250)
    given_terms = [np.array([a], np.int16) for a, _ in terms]
    given_accumulator = None if accumulator is None else np.array([accumulator])
    result = requantize(requant, clamp, given_accumulator, given_terms)
    assert result.tolist() == [by_definition(requant, clamp, accumulator, [a for a, _ in terms])]


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**30), st.integers(-(2**60), 2**60))
def test_logits_are_their_definition(accumulator: int, multiplier: int, rounding: int) -> None:
    scale = LogitScale(np.array([multiplier], np.int32), np.array([rounding]))
    exact = (accumulator * multiplier + rounding) >> 30
    expected = np.array([exact]).astype(np.int32)
    assert scale_logits(scale, np.array([accumulator])).tolist() == expected.tolist()


@given(integer_graphs(), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_every_node_equals_torch_and_python_integers(graph: IntegerGraph, seed: int) -> None:
    """Every node recomputed from its operands: sums and windows by torch in float64, the rest element by element."""
    x = random_input(graph, 2, seed)
    values = activations(graph, x)
    rng = np.random.default_rng(seed)
    for node, value in zip(graph.nodes, values, strict=True):
        inputs = [values[i] for i in operands(node)]
        if isinstance(node, MaxPool2d | Concat | Slice | Pad | Flatten):
            np.testing.assert_array_equal(value, moved_by_torch(node, inputs))
            continue
        accumulator = accumulator_by_torch(node, x, inputs, graph.scheme)
        terms = inputs if isinstance(node, Add) else inputs[1:]
        for at in zip(*(rng.integers(0, extent, 20) for extent in value.shape), strict=True):
            exact = None if accumulator is None else int(accumulator[at])
            entry = 0 if isinstance(node, Add) else at[-1]
            if isinstance(node, AvgPool2d):
                entry = node.kind[at[1], at[2]]
            if isinstance(node, Linear | Conv2d) and isinstance(node.requant, LogitScale):
                expected = (exact * int(node.requant.multiplier[entry]) + int(node.requant.rounding[entry])) >> 30
            else:
                expected = by_definition(node.requant, node.clamp, exact, [int(t[at]) for t in terms], entry)
            assert int(value[at]) == expected, type(node).__name__
    np.testing.assert_array_equal(run(graph, x), values[-1].astype(np.int32))


def channels_first(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(a, -1, 1).astype(np.float64))


def channels_last(t: torch.Tensor) -> np.ndarray:
    return np.moveaxis(t.numpy(), 1, -1)


def accumulator_by_torch(node: Node, x: np.ndarray, inputs: list[np.ndarray], scheme: str) -> np.ndarray | None:
    """The exact sum that a node requantizes, bias and input scale included; None where it has none."""
    if isinstance(node, Add):
        return None
    if isinstance(node, InputQuantize):
        return x.astype(np.int64) * input_scale(scheme) + node.bias
    if isinstance(node, Linear):
        return (inputs[0].astype(object) @ node.weight.T.astype(object)).astype(np.int64) + node.bias
    if isinstance(node, Conv2d):
        top, left, bottom, right = node.padding
        padded = F.pad(channels_first(inputs[0]), (left, right, top, bottom), value=node.pad_value)
        weight = channels_first(node.weight)
        exact = F.conv2d(padded, weight, None, node.stride, 0, node.dilation, node.groups)
        return channels_last(exact).astype(np.int64) + node.bias
    sums = np.array(
        [[inputs[0][:, r0:r1, c0:c1].astype(np.int64).sum((1, 2)) for c0, c1 in node.columns] for r0, r1 in node.rows]
    )
    total = np.moveaxis(sums, 2, 0) + node.bias[node.kind][None, :, :, None]
    return total * (1 if scheme == "q15" else 256)


def moved_by_torch(node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    if isinstance(node, Concat):
        return np.concatenate(inputs, axis=-1)
    if isinstance(node, Flatten):
        source = inputs[0]
        return torch.flatten(channels_first(source) if source.ndim == 4 else torch.from_numpy(source), 1).numpy()
    source = channels_first(inputs[0])
    if isinstance(node, Pad):
        widths = [w for pair in zip(node.before, node.after, strict=True) for w in pair]
        (top, bottom, left, right, first, last) = widths
        return channels_last(F.pad(source, (left, right, top, bottom, first, last), value=node.value))
    if isinstance(node, Slice):
        (r, c, z) = (slice(*bounds) for bounds in zip(node.start, node.stop, node.step, strict=True))
        return channels_last(source[:, z, r, c])
    top, left, bottom, right = node.padding
    lowest = 0 if inputs[0].dtype == np.uint8 else -128
    padded = F.pad(source, (left, right, top, bottom), value=lowest)
    return channels_last(F.max_pool2d(padded, node.kernel, node.stride, 0, node.dilation))


def test_run_accepts_any_batch() -> None:
    graph = IntegerGraph(
        (2, 2, 1),
        "q15",
        (
            InputQuantize(
                np.zeros(1, np.int32),
                RequantQ15(np.full(1, 2048, np.int16), np.zeros(1, np.int8), np.zeros(0, np.int16)),
                Clamp("int8", -128, 127),
            ),
            Flatten(0),
        ),
        ("quantize", "flatten"),
    )
    x = np.array([[[[1], [-2]], [[3], [300]]]], np.int16)
    assert run(graph, x).tolist() == [[1, -2, 3, 127]]
    assert run(graph, np.repeat(x, 5, 0)).tolist() == [[1, -2, 3, 127]] * 5
    assert run(graph, x[:0]).shape == (0, 4)


@pytest.mark.parametrize(("scheme", "scale"), [("q15", 16), ("q31", 256)])
def test_input_scale(scheme: str, scale: int) -> None:
    assert input_scale(scheme) == scale
