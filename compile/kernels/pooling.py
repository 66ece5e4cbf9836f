"""Average and maximum over windows; lanes are channels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import LANES, Expr, Kernel, kernel_function, local, loop, splat, store, vector, when
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.layout import Layout
from intcert.compile.nodes import STORED_RANGE, AvgPool2d, MaxPool2d


def avg_pool2d(node: AvgPool2d, source: Layout, result: Layout, batch: int, scheme: str) -> Kernel:
    """Kernel of an average: the bins are data, read at run time."""
    pre_shift = 0 if scheme == "q15" else 8
    epilogue, constants = plan_epilogue(node.requant, node.clamp, node.bias, (), len(node.bias), pre_shift)
    bins = (node.rows.ravel(), node.columns.ravel(), node.kind.ravel())
    return Kernel("avgpool", _average_function(epilogue, source, result, batch), (*bins, *constants))


@cache
def _average_function(epilogue: Epilogue, source: Layout, result: Layout, batch: int) -> tirx.PrimFunc:
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
        total = local(LANES, "int32")
        with (
            loop(batch) as n,
            loop(result.height) as h,
            loop(result.width) as w,
            loop(result.stride // LANES) as c,
        ):

            def load(buffer: tirx.Buffer, base: int, h: Expr = h, w: Expr = w) -> Expr:
                return tirx.Broadcast(buffer[base + kind[h * result.width + w]], LANES)

            store(total, 0, load(narrow, 0), LANES)
            with tb.serial(rows[h * 2], rows[h * 2 + 1]) as y, tb.serial(columns[w * 2], columns[w * 2 + 1]) as x:
                at = n * source.elements + (y * source.width + x) * source.stride + c * LANES
                store(total, 0, vector(total, 0) + vector(values, at).astype(f"int32x{LANES}"), LANES)
            at = n * result.elements + (h * result.width + w) * result.stride + c * LANES
            store(output, at, epilogue.result(vector(total, 0), [], load, (narrow, wide), LANES), LANES)

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
        best = local(LANES, source.dtype)
        with (
            loop(spec.batch) as n,
            loop(result.height) as h,
            loop(result.width) as w,
            loop(result.stride // LANES) as c,
        ):
            store(best, 0, splat(lowest, source.dtype, LANES), LANES)
            with loop(spec.kernel[0]) as kh, loop(spec.kernel[1]) as kw:
                y = h * spec.stride[0] + kh * spec.dilation[0] - spec.padding[0]
                x = w * spec.stride[1] + kw * spec.dilation[1] - spec.padding[1]
                inside = tirx.all(y >= 0, y < source.height, x >= 0, x < source.width)
                with when(inside):
                    at = n * source.elements + (y * source.width + x) * source.stride + c * LANES
                    store(best, 0, tirx.max(vector(best, 0), vector(values, at)), LANES)
            at = n * result.elements + (h * result.width + w) * result.stride + c * LANES
            store(output, at, vector(best, 0), LANES)

    return kernel_function(parameters, body)
