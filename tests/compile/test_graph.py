"""IntegerGraph: its encoding, its digest, and every rule that its construction enforces."""

from __future__ import annotations

import contextlib
import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import integer_graphs

from intcert.compile.graph import IntegerGraph
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
    RequantQ15,
    RequantQ31,
    Slice,
)
from intcert.runtime.errors import ModelError

NO_TERMS = np.zeros(0, np.int16)
NO_SHIFTS = np.zeros(0, np.int8)
SIGNED, UNSIGNED = Clamp("int8", -127, 127), Clamp("uint8", 0, 255)


def q15(channels: int, terms: int = 0) -> RequantQ15:
    return RequantQ15(np.full(channels, 9000, np.int16), np.full(channels, 6, np.int8), np.full(terms, 2048, np.int16))


def q15_sum(terms: int, multiplier: int, offset: int = 4) -> RequantQ15:
    return RequantQ15(NO_TERMS, NO_SHIFTS, np.full(terms, multiplier, np.int16), offset)


def q31(channels: int, multiplier: int = 2**25) -> RequantQ31:
    return RequantQ31(
        np.full(channels, multiplier, np.int32),
        np.zeros((0, channels), np.int32),
        np.full(channels, 2**39, np.int64),
        np.full(channels, 40, np.int8),
    )


def quantize(channels: int = 3) -> InputQuantize:
    requant = RequantQ15(np.full(channels, 1000, np.int16), np.zeros(channels, np.int8), NO_TERMS)
    return InputQuantize(np.zeros(channels, np.int32), requant, SIGNED)


def conv(source: int, channels: int = 3, outputs: int = 4, **changes: object) -> Conv2d:
    node = Conv2d(
        source,
        np.ones((outputs, 3, 3, channels), np.int8),
        np.zeros(outputs, np.int32),
        (1, 1),
        (1, 1, 1, 1),
        (1, 1),
        1,
        0,
        q15(outputs),
        UNSIGNED,
    )
    return dataclasses.replace(node, **changes)


def pool(source: int, side: int = 6) -> AvgPool2d:
    whole = np.array([[0, side]], np.int32)
    return AvgPool2d(source, whole, whole, np.zeros((1, 1), np.int32), np.zeros(1, np.int32), q15(1), UNSIGNED)


def head(source: int, inputs: int, classes: int = 5) -> Linear:
    scale = LogitScale(np.full(classes, 2**30, np.int32), np.full(classes, 2**29, np.int64))
    return Linear(source, np.ones((classes, inputs), np.int8), np.zeros(classes, np.int32), scale, None)


def graph(*nodes: Node, scheme: str = "q15") -> IntegerGraph:
    return IntegerGraph((6, 6, 3), scheme, nodes, tuple(f"n{i}" for i in range(len(nodes))))


def small() -> IntegerGraph:
    return graph(quantize(), conv(0), pool(1), Flatten(2), head(3, 4))


@given(integer_graphs())
@settings(max_examples=30, deadline=None)
def test_bytes_round_trip(original: IntegerGraph) -> None:
    copy = IntegerGraph.from_bytes(original.to_bytes())
    assert copy.to_bytes() == original.to_bytes()
    assert copy.digest == original.digest
    assert copy.info == original.info


def test_digest_is_of_the_meaning_alone() -> None:
    original = small()
    renamed = IntegerGraph(original.input_shape, original.scheme, original.nodes, tuple("abcde"))
    assert renamed.digest == original.digest
    assert renamed.to_bytes() != original.to_bytes()
    other = dataclasses.replace(original.nodes[1], bias=np.array([0, 0, 0, 1], np.int32))
    assert graph(original.nodes[0], other, *original.nodes[2:]).digest != original.digest


def test_digest_is_pinned() -> None:
    assert small().digest == "0c066a24b7ff47a02ca3e41876001a2bf33d3d68ccdf2b436b80afa89fa0e18b"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_are_refused_or_still_a_valid_graph(data: st.DataObject) -> None:
    encoded = bytearray(small().to_bytes())
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ModelError):
        IntegerGraph.from_bytes(bytes(encoded[:cut]))
    encoded[cut] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ModelError):
        IntegerGraph.from_bytes(bytes(encoded))


def test_shapes_dtypes_and_ranges() -> None:
    info = small().info
    assert [i.shape for i in info] == [(6, 6, 3), (6, 6, 4), (1, 1, 4), (4,), (5,)]
    assert [i.dtype for i in info] == ["int8", "uint8", "uint8", "uint8", "int32"]
    assert info[0].range == (-127, 127)
    assert small().classes == 5
    assert small().dimension == 108


BROKEN: list[tuple[str, list[Node], str]] = [
    ("no nodes", [], "a graph needs nodes"),
    ("image as logits", [quantize()], "not a vector of logits"),
    ("forward reference", [quantize(), conv(2)], "are not earlier nodes"),
    ("stray operand", [quantize(), conv(-1)], "are not earlier nodes"),
    ("weight does not fit", [quantize(), conv(0, channels=5)], "does not fit 3 input channels"),
    ("weight dtype", [quantize(), conv(0, weight=np.ones((4, 3, 3, 3), np.int16))], "weight must be a 4-d"),
    ("bias length", [quantize(), conv(0, bias=np.zeros(3, np.int32))], "has 3 biases for 4 channels"),
    ("bias dtype", [quantize(), conv(0, bias=np.zeros(4, np.int64))], "bias must be"),
    ("stride", [quantize(), conv(0, stride=(0, 1))], "positive"),
    ("padding", [quantize(), conv(0, padding=(-1, 0, 0, 0))], "negative"),
    ("pad value", [quantize(), conv(0, pad_value=200)], "does not fit int8"),
    ("kernel too large", [quantize(), conv(0, dilation=(4, 4))], "larger than its padded input"),
    ("multipliers", [quantize(), conv(0, requant=q15(3))], "has 3 multipliers for 4 channels"),
    ("other scheme", [quantize(), conv(0, requant=q31(4))], "RequantQ31 in a graph of scheme q15"),
    ("missing clamp", [quantize(), conv(0, clamp=None)], "has no clamp"),
    ("term missing", [quantize(), conv(0, requant=q15(4, terms=1))], "1 scales for 0 terms"),
    ("term shape", [quantize(), conv(0, terms=(0,), requant=q15(4, terms=1))], "adds a term of shape (6, 6, 3)"),
    ("terms too large", [quantize(), Add((0,) * 200, q15_sum(200, 32767), SIGNED)], "over 4000"),
    ("offset too large", [quantize(), Add((0,), q15_sum(1, 256, -32637), SIGNED)], "overflows the 16-bit sum"),
    ("nothing to add", [quantize(), Add((), q15_sum(0, 1), SIGNED)], "adds nothing"),
    ("pool outside", [quantize(), pool(0, side=7)], "not half-open bins within 6"),
    ("max pool padding", [quantize(), MaxPool2d(0, (2, 2), (2, 2), (2, 0, 0, 0), (1, 1))], "does not fit kernel"),
    ("concat dtypes", [quantize(), conv(0), Concat((0, 1))], "joins uint8"),
    ("slice", [quantize(), Slice(0, (0, 0, 0), (7, 6, 3), (1, 1, 1))], "slice 0:7:1 does not fit 6"),
    ("pad", [quantize(), Pad(0, (0, 0, 0), (0, 0, 0), 128)], "pad value 128 does not fit int8"),
    ("linear on image", [quantize(), head(0, 108)], "needs a vector"),
    ("linear size", [quantize(), Flatten(0), head(1, 107)], "does not fit 108 inputs"),
    ("conv on vector", [quantize(), Flatten(0), conv(1)], "needs an (H, W, C) operand"),
    ("logits as activation", [quantize(), Flatten(0), head(1, 108), head(2, 5)], "reads int32 logits"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_graphs_are_refused(nodes: list[Node], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        graph(*nodes)
    assert "\n" not in str(caught.value)


def test_refusal_names_the_node() -> None:
    with pytest.raises(ModelError, match=r"^n1 \(Conv2d\): "):
        graph(quantize(), conv(0, channels=5))


def test_scheme_and_input_shape_are_checked() -> None:
    with pytest.raises(ModelError, match="neither q15 nor q31"):
        graph(quantize(), scheme="q7")
    with pytest.raises(ModelError, match="height, width, channels"):
        IntegerGraph((6, 0, 3), "q15", (quantize(),), ("n",))


def test_accumulator_bound_is_exact() -> None:
    """The largest bias that fits is accepted, the next one refused."""
    weights = np.full((1, 108), -127, np.int8)
    largest = 2**31 - 1 - 127 * 127 * 108
    scale = LogitScale(np.ones(1, np.int32), np.zeros(1, np.int64))

    def build(bias: int) -> IntegerGraph:
        return graph(quantize(), Flatten(0), Linear(1, weights, np.array([bias], np.int32), scale, None))

    assert build(largest).classes == 1
    assert build(-largest).classes == 1
    for bias in (largest + 1, -largest - 1):
        with pytest.raises(ModelError, match=f"can reach {2**31}"):
            build(bias)


def test_q31_bound_is_exact() -> None:
    """Three terms within 2^63 are accepted; one more unit of rounding is refused."""
    quantized = InputQuantize(np.zeros(3, np.int32), q31(3), SIGNED)
    reach = (127 << 8) * (2**31 - 1)

    def build(rounding: int) -> IntegerGraph:
        requant = RequantQ31(
            np.zeros(0, np.int32),
            np.full((1, 1), 2**31 - 1, np.int32),
            np.array([rounding], np.int64),
            np.array([62], np.int8),
        )
        return graph(quantized, Add((0,), requant, SIGNED), Flatten(1), head(2, 108), scheme="q31")

    assert build(2**63 - 1 - reach).classes == 5
    with pytest.raises(ModelError, match="over 2\\*\\*63"):
        build(2**63 - reach)


@pytest.mark.parametrize(
    ("multiplier", "shift", "terms"),
    [(0, 0, 0), (-1, 0, 0), (16384, 0, 1), (1, 31, 0), (1, -1, 0)],
)
def test_q15_constants_are_checked(multiplier: int, shift: int, terms: int) -> None:
    with pytest.raises(ModelError):
        RequantQ15(np.array([multiplier], np.int16), np.array([shift], np.int8), np.full(terms, 1, np.int16))


@pytest.mark.parametrize(("lo", "hi", "dtype"), [(1, 0, "int8"), (-129, 0, "int8"), (0, 256, "uint8"), (0, 1, "int16")])
def test_clamp_is_checked(lo: int, hi: int, dtype: str) -> None:
    with pytest.raises(ModelError):
        Clamp(dtype, lo, hi)
