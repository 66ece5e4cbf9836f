"""Every operator of the importer against PyTorch's own run, and the integers that it becomes."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
import torch
from qdq_programs import Program, Weights, assert_follows_torch, conv, export, pixels, qdq, u8
from torch import nn
from torch.nn import functional

from intcert.compile.frontend import import_program
from intcert.compile.graph import IntegerGraph
from intcert.compile.nodes import Add, AvgPool2d, Concat, Conv2d, InputQuantize, Linear, MaxPool2d, Pad, RequantQ31
from intcert.compile.requantize import Accumulator, Quantization, requantize
from intcert.runtime.errors import ModelError

SCHEMES = ("q15", "q31")

# --- operators -------------------------------------------------------------------------------------------------------


def add_three(m, x):
    return u8((m.a(x) + x + u8(m.b(x), 0.03, 100)).relu())


def inplace_add(m, x):
    y = m.a(x)
    y += x
    return u8(functional.relu_(y))


def option_a(m, x):
    return u8((m.a(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).relu())


def joined(m, x):
    return u8(torch.cat([m.a(x), x, u8(m.b(x), 0.05)], 1), 0.03, 40)


BODIES = {
    "convolution": (lambda m, x: u8(m.a(x), 0.03, 120), {"a": conv(6, 4, 3, 3)}),
    "strided, padded, dilated": (
        lambda m, x: u8(m.a(x), 0.03, 120),
        {"a": conv(6, 4, 3, 2, stride=(2, 1), padding=(2, 1), dilation=(1, 2))},
    ),
    "grouped": (lambda m, x: u8(m.a(x), 0.03, 120), {"a": conv(6, 2, 3, 3, groups=2, padding=1)}),
    "depthwise": (lambda m, x: u8(m.a(x), 0.03, 120), {"a": conv(8, 1, 3, 3, groups=4)}),
    "same padding": (lambda m, x: u8(m.a(x), 0.03, 120), {"a": conv(4, 4, 2, 4, padding="same")}),
    "valid padding": (lambda m, x: u8(m.a(x), 0.03, 120), {"a": conv(4, 4, 2, 2, padding="valid")}),
    "no bias": (lambda m, x: qdq(m.a(x), 0.03, -9), {"a": conv(4, 4, 1, 1, bias=False)}),
    "linear": (lambda m, x: qdq(m.a(x.flatten(1)).relu(), 0.02, -128), {"a": conv(7, 288)}),
    "relu6": (lambda m, x: u8(functional.relu6(m.a(x)), 0.03), {"a": conv(4, 4, 1, 1)}),
    "hardtanh": (lambda m, x: qdq(functional.hardtanh(m.a(x), -0.5, 0.7), 0.007), {"a": conv(4, 4, 1, 1)}),
    "clamp": (lambda m, x: u8(m.a(x).clamp(0, 1.5), 0.01, 0), {"a": conv(4, 4, 1, 1)}),
    "clamp_min": (lambda m, x: u8(m.a(x).clamp_min(0.0)), {"a": conv(4, 4, 1, 1)}),
    "clamp of a clamp": (lambda m, x: u8(m.a(x).relu().clamp(-1, 1.5).clamp(max=1.2), 0.01), {"a": conv(4, 4, 1, 1)}),
    "clamp in place": (lambda m, x: u8(m.a(x).clamp_(0.0, 1.0), 0.006), {"a": conv(4, 4, 1, 1)}),
    "standalone relu": (lambda m, x: u8(m.a(functional.relu(qdq(x, 0.03, 20))), 0.03, 90), {"a": conv(4, 4, 1, 1)}),
    "residual": (lambda m, x: u8((m.a(x) + x).relu()), {"a": conv(4, 4, 3, 3, padding=1)}),
    "residual first": (lambda m, x: qdq(x + m.a(x), 0.03, 11), {"a": conv(4, 4, 3, 3, padding=1)}),
    "sum of three": (add_three, {"a": conv(4, 4, 1, 1), "b": conv(4, 4, 3, 3, seed=2, padding=1)}),
    "add in place": (inplace_add, {"a": conv(4, 4, 1, 1)}),
    "stored sum": (lambda m, x: u8(x + qdq(x, 0.05, 1) + x, 0.06, 9), {}),
    "option A": (option_a, {"a": conv(8, 4, 3, 3, stride=2, padding=1)}),
    "concatenation": (joined, {"a": conv(3, 4, 1, 1), "b": conv(2, 4, 1, 1, seed=2)}),
    "concatenation of one scale": (lambda m, x: torch.cat([x, u8(m.a(x))], 1), {"a": conv(3, 4, 1, 1)}),
    "clamped concatenation": (lambda m, x: u8(torch.cat([m.a(x), x], 1).relu()), {"a": conv(3, 4, 1, 1)}),
    "max pool": (lambda m, x: functional.max_pool2d(x, 3, 2, 1), {}),
    "max pool in ceil mode": (lambda m, x: functional.max_pool2d(x, (3, 2), 2, (1, 0), ceil_mode=True), {}),
    "dilated max pool": (lambda m, x: functional.max_pool2d(x, 2, 1, dilation=(2, 3)), {}),
    "max pool in front of its quantize": (
        lambda m, x: u8(functional.max_pool2d(m.a(x).relu(), 2)),
        {"a": conv(4, 4, 1, 1)},
    ),
    "average pool": (lambda m, x: u8(functional.avg_pool2d(x, 3, 2, 1), 0.017), {}),
    "average pool without padding": (
        lambda m, x: u8(functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), 0.017, 30),
        {},
    ),
    "average pool in ceil mode": (lambda m, x: qdq(functional.avg_pool2d(x, (4, 3), 3, (2, 1), True), 0.017), {}),
    "average pool with its divisor": (lambda m, x: u8(functional.avg_pool2d(x, 2, divisor_override=3), 0.019), {}),
    "uneven adaptive pool": (lambda m, x: u8(functional.adaptive_avg_pool2d(x, (4, 3)), 0.017), {}),
    "adaptive pool that changes nothing": (lambda m, x: u8(functional.adaptive_avg_pool2d(x, (9, 8)), 0.017), {}),
    "global average": (lambda m, x: u8(x.mean((2, 3)), 0.011), {}),
    "global average, kept": (lambda m, x: u8(x.mean((-1, -2), keepdim=True), 0.011), {}),
    "squeezes": (lambda m, x: u8(functional.adaptive_avg_pool2d(x, 1), 0.011).squeeze(-1).squeeze(-1), {}),
    "reshape": (lambda m, x: x.reshape(x.size(0), -1), {}),
    "view": (lambda m, x: x.view(x.shape[0], 288), {}),
    "identities": (lambda m, x: functional.dropout(x.clone().contiguous().detach(), 0.5, False), {}),
    "dropout in place": (lambda m, x: functional.dropout(x, 0.5, False, inplace=True), {}),
    "slices": (lambda m, x: x[:, 1:3, 1::3, -5:], {}),
    "padding": (lambda m, x: u8(m.a(functional.pad(x, (1, 0, 2, 1))), 0.03, 90), {"a": conv(4, 4, 2, 2)}),
    "sum()": (lambda m, x: u8(sum([m.a(x), x])), {"a": conv(4, 4, 1, 1)}),
}


@pytest.mark.parametrize("name", BODIES)
def test_operator(name: str):
    body, modules = BODIES[name]
    program = export(Program(body, **modules).eval())
    for scheme in SCHEMES:
        assert_follows_torch(program, scheme, pixels())


def last(graph: IntegerGraph, kind: type):
    return [node for node in graph.nodes if isinstance(node, kind)][-1]


def graph_of(name: str, scheme: str = "q31") -> IntegerGraph:
    body, modules = BODIES[name]
    return import_program(export(Program(body, **modules).eval()), scheme)


def test_residual_add_joins_the_convolution():
    graph = graph_of("sum of three")
    assert [type(node) for node in graph.nodes] == [InputQuantize, Conv2d, Conv2d, Conv2d, type(graph.nodes[4]), Linear]
    assert len(last(graph, Conv2d).terms) == 2
    assert graph.names == ("div", "relu", "conv2d_2", "relu_1", "flatten", "linear")


def test_convolution_pads_with_the_zero_point():
    assert [node.pad_value for node in graph_of("strided, padded, dilated").nodes if isinstance(node, Conv2d)] == [5, 3]
    assert last(graph_of("option A"), Pad).value == 3


def test_same_padding_puts_the_odd_row_behind():
    assert last(graph_of("same padding"), Conv2d).padding == (0, 1, 1, 2)


def test_bounds_of_clamps():
    assert (last(graph_of("relu6"), Conv2d).clamp.lo, last(graph_of("relu6"), Conv2d).clamp.hi) == (3, 3 + 200)
    clamp = last(graph_of("hardtanh"), Conv2d).clamp
    assert (clamp.lo, clamp.hi) == (-71, 100)  # round(-0.5 / 0.007) = -71, 0.7 / 0.007 = 100
    clamp = last(graph_of("clamp of a clamp"), Conv2d).clamp
    assert (clamp.lo, clamp.hi) == (3, 123)


def test_pieces_of_other_scales_are_rescaled():
    graph = graph_of("concatenation")
    pieces = [graph.nodes[i] for i in last(graph, Concat).inputs]
    assert [type(piece) for piece in pieces] == [Conv2d, Add, Add]
    assert not any(isinstance(node, Add) for node in graph_of("concatenation of one scale").nodes)


def test_padding_of_pools():
    assert last(graph_of("max pool in ceil mode"), MaxPool2d).padding == (1, 0, 1, 0)
    node = last(graph_of("average pool in ceil mode"), AvgPool2d)
    assert node.rows.tolist() == [[0, 2], [1, 5], [4, 8], [7, 9]]
    assert node.columns.tolist() == [[0, 2], [2, 5], [5, 8], [8, 8]] or node.columns.tolist() == [
        [0, 2],
        [2, 5],
        [5, 8],
    ]


def test_bins_of_adaptive_pools_overlap():
    node = last(graph_of("uneven adaptive pool"), AvgPool2d)
    assert node.rows.tolist() == [[0, 3], [2, 5], [4, 7], [6, 9]]
    assert node.columns.tolist() == [[0, 3], [2, 6], [5, 8]]
    assert len(node.bias) == 2  # 9 and 12 elements
    assert sorted(node.bias.tolist()) == [-3 * 12, -3 * 9]


def test_unused_work_is_left_out():
    def body(m, x):
        m.a(x)
        return x

    graph = import_program(export(Program(body, a=conv(4, 4, 1, 1)).eval()))
    assert [type(node).__name__ for node in graph.nodes] == ["InputQuantize", "Conv2d", "Flatten", "Linear"]


def test_names_are_unique():
    graph = graph_of("clamped concatenation")
    assert len(set(graph.names)) == len(graph.names)


# --- normalisation ---------------------------------------------------------------------------------------------------


def whole(body, **modules: nn.Module) -> Program:
    return Program(body, whole=True, fc=Weights(5, 3 * 9 * 8, seed=9), **modules).eval()


MEAN, STD = ([Fraction(float(np.float32(v))) for v in values] for values in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [
        (lambda m, x: x, lambda x, mean, std: x),
        (lambda m, x: (x - 0.5) / 0.25, lambda x, mean, std: 4 * x - 2),
        (lambda m, x: x.mul(2).sub(1.0), lambda x, mean, std: 2 * x - 1),
        (lambda m, x: (1 - x) * -2 + 0.25, lambda x, mean, std: 2 * x - Fraction(7, 4)),
        (lambda m, x: x * 8 * m.std + m.mean, lambda x, mean, std: 8 * x * std + mean),
        (lambda m, x: (x - m.mean) / m.std, lambda x, mean, std: (x - mean) / std),
        (lambda m, x: x.sub_(m.mean.view(1, 3, 1, 1)).div_(m.std[None]), lambda x, mean, std: (x - mean) / std),
    ],
)
def test_normalisation_is_folded_exactly(normalise, expected):
    program = export(whole(lambda m, x: m.fc(qdq(normalise(m, x), 0.02, 4).flatten(1))))
    graph = assert_follows_torch(program, "q31", pixels())
    offset = [expected(Fraction(0), mean, std) for mean, std in zip(MEAN, STD, strict=True)]
    unit = [expected(Fraction(1, 255), mean, std) - zero for mean, std, zero in zip(MEAN, STD, offset, strict=True)]
    accumulator = Accumulator(unit, offset, np.zeros(3, np.int64), np.full(3, 2**15))
    output = Quantization(Fraction(0.02), 4, (-128, 127))
    for scheme in SCHEMES:
        bias, requant = requantize(scheme, accumulator, [], output, "pixels")
        node = import_program(program, scheme).nodes[0]
        assert node.bias.tolist() == bias.tolist()
        for field in fields(requant):
            assert np.array_equal(getattr(node.requant, field.name), getattr(requant, field.name))
    assert isinstance(graph.nodes[0].requant, RequantQ31)


def test_flatten_may_come_before_the_quantize():
    program = whole(lambda m, x: m.fc(qdq(((x - m.mean) / m.std).flatten(1), 0.02)))
    graph = assert_follows_torch(export(program), "q31", pixels())
    assert [type(node).__name__ for node in graph.nodes] == ["InputQuantize", "Flatten", "Linear"]


def test_scheme_auto_is_q15_where_it_holds():
    assert import_program(export(whole(lambda m, x: m.fc(qdq(x, 0.02).flatten(1))))).scheme == "q15"
    # A pixel level is less than an eighth of a step, or the function falls: only q31 can.
    for body in (
        lambda m, x: m.fc(qdq(x, 0.2).flatten(1)),
        lambda m, x: m.fc(qdq(1 - x, 0.02).flatten(1)),
    ):
        program = export(whole(body))
        assert import_program(program).scheme == "q31"
        with pytest.raises(ModelError, match=r"q15 cannot scale channel 0 by .*; use scheme q31"):
            import_program(program, "q15")
