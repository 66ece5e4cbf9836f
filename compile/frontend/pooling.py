"""Pooling: PyTorch's padding, ceil mode and adaptive bins, as the integer graph has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from intcert.compile.frontend.builder import GraphBuilder
from intcert.compile.frontend.calls import Call, operator, require_image
from intcert.compile.frontend.values import Move, Pending, Value
from intcert.compile.nodes import AvgPool2d, Flatten, MaxPool2d
from intcert.compile.requantize import Accumulator
from intcert.runtime.errors import ModelError

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Bins:
    """Pooling bins along one axis. bounds: int32[count, 2], half open; divisor: int64[count], elements to divide by."""

    bounds: np.ndarray
    divisor: np.ndarray


def window_bins(extent: int, count: int, kernel: int, stride: int, padding: int, include_padding: bool) -> Bins:
    """Bins of AvgPool2d. Windows of ceil mode may pass the padding; what lies behind it never counts."""
    start = np.arange(count) * stride - padding
    stop = np.minimum(start + kernel, extent + padding)
    bounds = np.clip(np.stack([start, stop], axis=1), 0, extent)
    divisor = stop - start if include_padding else bounds[:, 1] - bounds[:, 0]
    return Bins(bounds.astype(np.int32), divisor)


def adaptive_bins(extent: int, count: int) -> Bins:
    """Bins of AdaptiveAvgPool2d: from floor(i extent / count) to ceil((i + 1) extent / count)."""
    i = np.arange(count)
    bounds = np.stack([i * extent // count, -(-(i + 1) * extent // count)], axis=1)
    return Bins(bounds.astype(np.int32), bounds[:, 1] - bounds[:, 0])


def average(graph: GraphBuilder, value: Value, rows: Bins, columns: Bins, divisor: int | None, name: str) -> Value:
    """The average of a stored tensor over bins, as a pending accumulator; divisor overrides the bins' own."""
    divisors = np.outer(rows.divisor, columns.divisor) if divisor is None else np.full(
        (len(rows.divisor), len(columns.divisor)), divisor
    )  # fmt: skip
    sizes = np.outer(np.diff(rows.bounds), np.diff(columns.bounds))
    if (sizes == 1).all() and (divisors == 1).all():
        return replace(value, name=name)
    source = graph.store(value)
    # A bin's entry: its divisor, and the zero points that its sum holds.
    entries, kind = np.unique(
        np.stack([divisors.ravel(), sizes.ravel() * source.code.zero_point]), axis=1, return_inverse=True
    )
    kind = kind.reshape(divisors.shape).astype(np.int32)
    summed = int(np.diff(rows.bounds).max()) * int(np.diff(columns.bounds).max())

    def build(bias: np.ndarray, requant: object, clamp: object, terms: tuple[int, ...]) -> AvgPool2d:
        return AvgPool2d(source.index, rows.bounds, columns.bounds, kind, bias, requant, clamp)

    accumulator = Accumulator(
        [source.code.scale / int(n) for n in entries[0]],
        [Fraction(0)] * entries.shape[1],
        -entries[1],
        np.full(entries.shape[1], summed * source.code.reach),
    )
    return Value(name, Pending(build, accumulator, "pool"))


def max_pool(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    extent: tuple[int, int],
    count: tuple[int, int],
) -> Move:
    """MaxPool2d with as much padding behind the image as its ``count`` windows reach."""
    after = [
        max(0, (count[a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1 - extent[a] - padding[a]) for a in (0, 1)
    ]
    return lambda index, code: MaxPool2d(index, kernel, stride, (*padding, *after), dilation)


@operator(_ATEN.max_pool2d.default)
def _max_pool(call: Call) -> Value:
    require_image(call)
    kernel = call.pair("kernel_size")
    stride = call.pair("stride") if call["stride"] else kernel
    move = max_pool(
        kernel, stride, call.pair("padding"), call.pair("dilation"), call.input_shape[1:], call.shape[1:]
    )  # fmt: skip
    return call.graph.move(call.value("self"), move, call.name)


@operator(_ATEN.avg_pool2d.default)
def _average_pool(call: Call) -> Value:
    require_image(call)
    kernel = call.pair("kernel_size")
    stride = call.pair("stride") if call["stride"] else kernel
    padding = call.pair("padding")
    rows, columns = (
        window_bins(extent, count, kernel[a], stride[a], padding[a], bool(call["count_include_pad"]))
        for a, (extent, count) in enumerate(zip(call.input_shape[1:], call.shape[1:], strict=True))
    )
    return average(call.graph, call.value("self"), rows, columns, call["divisor_override"], call.name)


@operator(_ATEN.adaptive_avg_pool2d.default)
def _adaptive_average_pool(call: Call) -> Value:
    require_image(call)
    rows, columns = (adaptive_bins(n, count) for n, count in zip(call.input_shape[1:], call.shape[1:], strict=True))
    return average(call.graph, call.value("self"), rows, columns, None, call.name)


@operator(_ATEN.mean.dim)
def _mean(call: Call) -> Value:
    require_image(call)
    if sorted(axis % 4 for axis in call["dim"] or ()) != [2, 3]:
        raise ModelError(f"averages over axes {call['dim']}; only (2, 3) has an integer form")
    bins = (adaptive_bins(extent, 1) for extent in call.input_shape[1:])
    value = average(call.graph, call.value("self"), *bins, None, call.name)
    return value if call["keepdim"] else call.graph.move(value, lambda index, code: Flatten(index), call.name)
