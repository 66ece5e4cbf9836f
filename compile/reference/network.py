"""Execution of an IntegerGraph, one function a node kind.

Sums of products are matrix products of floats: every partial sum is an integer below 2**31 (the graph proves it), which
float64 holds exactly, and float32 too where it is below 2**24. So the result is the integer sum in whatever order BLAS
takes it, and ResNet-50 stays quick.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from intcert.compile.graph import IntegerGraph
from intcert.compile.nodes import (
    STORED_RANGE,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    InputQuantize,
    Linear,
    LogitScale,
    MaxPool2d,
    Node,
    Pad,
    Slice,
    operands,
)
from intcert.compile.reference.requantize import requantize, scale_logits


def run(graph: IntegerGraph, x: np.ndarray) -> np.ndarray:
    """Logits of a batch. x: int16[n, H, W, C], pixel + noise. Returns int32[n, classes]."""
    remaining = _last_uses(graph)
    values: dict[int, np.ndarray] = {}
    for position, node in enumerate(graph.nodes):
        values[position] = _execute(graph, node, values, x)
        for operand in operands(node):
            if remaining[operand] == position:
                values.pop(operand, None)
    return values[len(graph.nodes) - 1].astype(np.int32)


def activations(graph: IntegerGraph, x: np.ndarray) -> list[np.ndarray]:
    """Every node's result for a batch x, int16[n, H, W, C]: arrays [n, *shape] in node order."""
    values: dict[int, np.ndarray] = {}
    for position, node in enumerate(graph.nodes):
        values[position] = _execute(graph, node, values, x)
    return [values[position] for position in range(len(graph.nodes))]


def _last_uses(graph: IntegerGraph) -> dict[int, int]:
    return {operand: position for position, node in enumerate(graph.nodes) for operand in operands(node)}


def _execute(graph: IntegerGraph, node: Node, values: dict[int, np.ndarray], x: np.ndarray) -> np.ndarray:
    if isinstance(node, InputQuantize):
        scaled = x.astype(np.int64) << (4 if graph.scheme == "q15" else 8)
        return requantize(node.requant, node.clamp, scaled + node.bias, [])
    return execute(node, [values[i] for i in operands(node)], graph.scheme)


@singledispatch
def execute(node: Node, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    """Result of one node, [n, *shape], given its operands in the order of ``nodes.operands``."""
    raise TypeError(f"{type(node).__name__} is not a node kind")


def _finish(node: Conv2d | Linear, accumulator: np.ndarray, terms: list[np.ndarray]) -> np.ndarray:
    if isinstance(node.requant, LogitScale):
        return scale_logits(node.requant, accumulator)
    return requantize(node.requant, node.clamp, accumulator, terms)


@execute.register
def _(node: Conv2d, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    top, left, bottom, right = node.padding
    source = np.pad(inputs[0], ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=node.pad_value)
    outputs, kernel_h, kernel_w, per_group = node.weight.shape
    extents = [node.dilation[a] * (k - 1) + 1 for a, k in enumerate((kernel_h, kernel_w))]
    windows = sliding_window_view(source, extents, (1, 2))[:, :: node.stride[0], :: node.stride[1]]
    windows = np.moveaxis(windows[..., :: node.dilation[0], :: node.dilation[1]], 3, -1)
    # One matrix product a group: [positions, KH * KW * I / g] x [KH * KW * I / g, O / g].
    n, rows, columns = windows.shape[:3]
    by_group = windows.reshape(n * rows * columns, kernel_h, kernel_w, node.groups, per_group)
    operand = np.moveaxis(by_group, 3, 0).reshape(node.groups, n * rows * columns, -1)
    weight = node.weight.reshape(node.groups, outputs // node.groups, -1)
    exact = _product(operand, weight.transpose(0, 2, 1))
    return _finish(node, np.moveaxis(exact, 0, 1).reshape(n, rows, columns, outputs) + node.bias, inputs[1:])


@execute.register
def _(node: Linear, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    return _finish(node, _product(inputs[0], node.weight.T) + node.bias, inputs[1:])


@execute.register
def _(node: Add, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    return requantize(node.requant, node.clamp, None, inputs)


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Exact matrix product of 8-bit integers as int64, in the narrowest float that holds every partial sum."""
    reach = np.abs(right.astype(np.int64)).sum(-2).max(initial=0) * (255 if left.dtype == np.uint8 else 128)
    real = np.float32 if reach < 2**24 else np.float64
    return (left.astype(real) @ right.astype(real)).astype(np.int64)


@execute.register
def _(node: AvgPool2d, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    # Bins as differences of a running sum along each axis.
    total = inputs[0].astype(np.int64)
    for axis, bins in ((1, node.rows), (2, node.columns)):
        running = np.insert(total.cumsum(axis), 0, 0, axis)
        total = running.take(bins[:, 1], axis) - running.take(bins[:, 0], axis)
    total = total + node.bias[node.kind][:, :, None]
    # The scheme's constants belong to positions here, not to channels: [n, C, positions] for a moment.
    n, rows, columns, channels = total.shape
    by_position = np.moveaxis(total, -1, 1).reshape(n, channels, rows * columns) << (0 if scheme == "q15" else 8)
    result = requantize(node.requant.select(node.kind.ravel()), node.clamp, by_position, [])
    return np.moveaxis(result.reshape(n, channels, rows, columns), 1, -1)


@execute.register
def _(node: MaxPool2d, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    top, left, bottom, right = node.padding
    lowest = STORED_RANGE[inputs[0].dtype.name][0]
    source = np.pad(inputs[0], ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=lowest)
    extents = [node.dilation[a] * (node.kernel[a] - 1) + 1 for a in (0, 1)]
    windows = sliding_window_view(source, extents, (1, 2))[:, :: node.stride[0], :: node.stride[1]]
    return windows[..., :: node.dilation[0], :: node.dilation[1]].max((-2, -1))


@execute.register
def _(node: Concat, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    return np.concatenate(inputs, -1)


@execute.register
def _(node: Slice, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    cuts = (slice(*bounds) for bounds in zip(node.start, node.stop, node.step, strict=True))
    return inputs[0][(slice(None), *cuts)]


@execute.register
def _(node: Pad, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    widths = [(0, 0), *zip(node.before, node.after, strict=True)]
    return np.pad(inputs[0], widths, constant_values=node.value)


@execute.register
def _(node: Flatten, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    source = inputs[0]
    channels_first = np.moveaxis(source, -1, 1) if source.ndim == 4 else source
    return channels_first.reshape(len(source), prod(source.shape[1:]))
