"""Average and maximum over windows; lanes are channels.

A window is read a cache line of channels at a time, since lines a power of two apart evict each other before the rest
of them is read. The last vector is moved back inside where the channels do not fill it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import (
    LANES,
    Expr,
    Kernel,
    clipped,
    kernel_function,
    local,
    loop,
    splat,
    store,
    typed,
    vector,
    when,
)
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.layout import Layout
from intcert.compile.nodes import STORED_RANGE, AvgPool2d, MaxPool2d

LINE = 64  # channels of a cache line


def _line_lanes(layout: Layout) -> int:
    """Channels that are read at once: a line, or the greatest power of two that there are."""
    return min(LINE, 1 << (layout.stride.bit_length() - 1))


def avg_pool2d(node: AvgPool2d, source: Layout, result: Layout, batch: int, scheme: str) -> Kernel:
    """Kernel of an average: the bins are data, read at run time."""
    pre_shift = 0 if scheme == "q15" else 8
    epilogue, constants = plan_epilogue(node.requant, node.clamp, node.bias, (), len(node.bias), pre_shift)
    bins = (node.rows.ravel(), node.columns.ravel(), node.kind.ravel())
    return Kernel(
        "avgpool", _average_function(epilogue, source, result, batch, _sum_dtype(node, source)), (*bins, *constants)
    )


def _sum_dtype(node: AvgPool2d, source: Layout) -> str:
    """The narrowest dtype that holds the sum of any bin: twice the lanes where it has 16 bits."""
    summed = int(np.diff(node.rows).max()) * int(np.diff(node.columns).max())
    least, most = STORED_RANGE[source.dtype]
    short = np.iinfo("uint16" if least == 0 else "int16")
    return short.dtype.name if short.min <= summed * least and summed * most <= short.max else "int32"


@cache
def _average_function(epilogue: Epilogue, source: Layout, result: Layout, batch: int, dtype: str) -> tirx.PrimFunc:
    """dtype: of the sums."""
    lanes = _line_lanes(result)
    parameters = [
        ("result", result.dtype, batch * result.elements),
        ("source", source.dtype, batch * source.elements),
        ("rows", "int32", result.height * 2),
        ("columns", "int32", result.width * 2),
        ("kind", "int32", result.height * result.width),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]

    def body(
        output: tirx.Buffer,
        values: tirx.Buffer,
        rows: tirx.Buffer,
        columns: tirx.Buffer,
        kind: tirx.Buffer,
        narrow: tirx.Buffer,
        wide: tirx.Buffer,
    ) -> None:
        total = local(lanes, dtype)
        with (
            loop(batch) as n,
            loop(result.height) as h,
            loop(result.width) as w,
            loop(-(-result.stride // lanes)) as block,
        ):
            channel = clipped(block, lanes, result.stride)

            def load(buffer: tirx.Buffer, base: int, h: Expr = h, w: Expr = w) -> Expr:
                return tirx.Broadcast(buffer[base + kind[h * result.width + w]], LANES)

            store(total, 0, splat(0, dtype, lanes), lanes)
            with tb.serial(rows[h * 2], rows[h * 2 + 1]) as y, tb.serial(columns[w * 2], columns[w * 2 + 1]) as x:
                at = n * source.elements + (y * source.width + x) * source.stride + channel
                wider = vector(values, at, lanes).astype(typed(dtype, lanes))
                store(total, 0, vector(total, 0, lanes) + wider, lanes)
            at = n * result.elements + (h * result.width + w) * result.stride + channel
            for start in range(0, lanes, LANES):
                sums = vector(total, start).astype(typed("int32", LANES)) + load(narrow, 0)
                store(output, at + start, epilogue.result(sums, [], load, (narrow, wide), LANES), LANES)

    return kernel_function(parameters, body)


@dataclass(frozen=True)
class MaxPoolSpec:
    """Everything that shapes the generated code; equal specs share one function."""

    batch: int
    source: Layout
    result: Layout
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # top, left
    dilation: tuple[int, int]


def max_pool2d(node: MaxPool2d, source: Layout, result: Layout, batch: int) -> Kernel:
    """Kernel of a maximum; positions outside the source are skipped, which is what the dtype's minimum means."""
    spec = MaxPoolSpec(batch, source, result, node.kernel, node.stride, node.padding[:2], node.dilation)
    return Kernel("maxpool", _maximum_function(spec))


@cache
def _maximum_function(spec: MaxPoolSpec) -> tirx.PrimFunc:
    source, result = spec.source, spec.result
    lowest = STORED_RANGE[source.dtype][0]
    parameters = [
        ("result", result.dtype, spec.batch * result.elements),
        ("source", source.dtype, spec.batch * source.elements),
    ]

    def body(output: tirx.Buffer, values: tirx.Buffer) -> None:
        lanes = _line_lanes(source)
        best = local(lanes, source.dtype)

        def windows(n: Expr, y: Expr, x: Expr, channel: Expr, checked: bool) -> None:
            """best = the maximum of the window that begins at row y and column x."""
            store(best, 0, splat(lowest, source.dtype, lanes), lanes)
            with loop(spec.kernel[0]) as kh, loop(spec.kernel[1]) as kw:
                row, column = y + kh * spec.dilation[0], x + kw * spec.dilation[1]
                inside = tirx.all(row >= 0, row < source.height, column >= 0, column < source.width)
                with when(inside if checked else None):
                    at = n * source.elements + (row * source.width + column) * source.stride + channel
                    store(best, 0, tirx.max(vector(best, 0, lanes), vector(values, at, lanes)), lanes)

        with (
            loop(spec.batch) as n,
            loop(result.height) as h,
            loop(result.width) as w,
            loop(-(-result.stride // lanes)) as block,
        ):
            channel = clipped(block, lanes, result.stride)
            y, x = h * spec.stride[0] - spec.padding[0], w * spec.stride[1] - spec.padding[1]
            bottom, right = (d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True))
            with tb.If(tirx.all(y >= 0, y + bottom < source.height, x >= 0, x + right < source.width)):
                with tb.Then():
                    windows(n, y, x, channel, checked=False)
                with tb.Else():
                    windows(n, y, x, channel, checked=True)
            at = n * result.elements + (h * result.width + w) * result.stride + channel
            store(output, at, vector(best, 0, lanes), lanes)

    return kernel_function(parameters, body)
