"""Execution of an IntegerGraph, one function a node kind.

Sums of products are float64 matrix products: every partial sum is an integer below 2**31 (the graph proves it), float64
is exact below 2**53, so the result is the integer sum in whatever order BLAS takes it, and ResNet-50 stays quick.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from intcert.compile.graph import IntegerGraph
from intcert.compile.infer import window_count
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
    n, height, width, _ = source.shape
    rows = window_count(height, kernel_h, node.stride[0], 0, 0, node.dilation[0])
    columns = window_count(width, kernel_w, node.stride[1], 0, 0, node.dilation[1])
    # One matrix product a kernel position and group: [n*rows*columns, I/g] x [I/g, O/g].
    source = source.astype(np.float64).reshape(n, height, width, node.groups, per_group)
    weight = node.weight.astype(np.float64).reshape(node.groups, -1, kernel_h, kernel_w, per_group)
    accumulator = np.zeros((node.groups, n * rows * columns, outputs // node.groups))
    for kh in range(kernel_h):
        for kw in range(kernel_w):
            y, x = kh * node.dilation[0], kw * node.dilation[1]
            window = source[
                :,
                y : y + (rows - 1) * node.stride[0] + 1 : node.stride[0],
                x : x + (columns - 1) * node.stride[1] + 1 : node.stride[1],
            ]
            columns_of_group = np.moveaxis(window, 3, 0).reshape(node.groups, n * rows * columns, per_group)
            accumulator += columns_of_group @ weight[:, :, kh, kw].transpose(0, 2, 1)
    exact = np.moveaxis(accumulator, 0, 1).reshape(n, rows, columns, outputs).astype(np.int64)
    return _finish(node, exact + node.bias, inputs[1:])


@execute.register
def _(node: Linear, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    exact = (inputs[0].astype(np.float64) @ node.weight.astype(np.float64).T).astype(np.int64)
    return _finish(node, exact + node.bias, inputs[1:])


@execute.register
def _(node: Add, inputs: list[np.ndarray], scheme: str) -> np.ndarray:
    return requantize(node.requant, node.clamp, None, inputs)


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
