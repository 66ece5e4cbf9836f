"""Depthwise convolution: every channel is convolved with its own kernel, so lanes are channels and nothing is summed
across them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import LANES, Kernel, Schedule, clipped, kernel_function, local, loop, store, vector
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.kernels.staging import Staging
from intcert.compile.layout import Layout
from intcert.compile.nodes import Conv2d
from intcert.targets import Target

COLUMNS = 4  # output pixels a tile: enough independent sums to hide a multiply
COLUMN_CHOICES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)


@dataclass(frozen=True)
class DepthwiseTile(Schedule):
    """Output pixels that one pass over the kernel serves."""

    columns: int


def depthwise_tiles(width: int, default: int) -> tuple[DepthwiseTile, ...]:
    """Tiles for rows of ``width`` pixels, the default first."""
    # A last tile that sticks out is moved back inside and does work twice; each tile costs about a column more.
    best = min(range(1, min(default, width) + 1), key=lambda count: -(-width // count) * (count + 1))
    columns = (best, *(count for count in COLUMN_CHOICES if count <= width))
    return tuple(DepthwiseTile(count) for count in dict.fromkeys(columns))


@dataclass(frozen=True)
class DepthwiseSpec:
    """Everything that shapes the generated code; equal specs share one function."""

    batch: int
    source: Layout
    result: Layout
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]  # top, left
    pad_value: int
    epilogue: Epilogue
    tile: DepthwiseTile

    @property
    def staging(self) -> Staging:
        return Staging(
            self.source,
            (self.result.height - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1,
            (self.result.width - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1,
            self.source.stride,
            *self.padding,
            self.source.dtype,
            self.pad_value,
        )


def _default_columns(target: Target) -> int:
    """As many as have their sums in the registers that a dot unit's tile would keep."""
    return max(1, min(COLUMNS, target.dot.accumulators * target.dot.lanes // LANES))


def depthwise_schedules(
    node: Conv2d, source: Layout, result: Layout, batch: int, target: Target
) -> tuple[DepthwiseTile, ...]:
    """Every width of a tile; the default is the first."""
    return depthwise_tiles(result.width, _default_columns(target))


def depthwise(
    node: Conv2d,
    source: Layout,
    terms: list[Layout],
    result: Layout,
    batch: int,
    target: Target,
    schedule: DepthwiseTile | None = None,
) -> Kernel:
    """Kernel of a convolution with as many groups as input and output channels."""
    tile = schedule or depthwise_tiles(result.width, _default_columns(target))[0]
    epilogue, constants = plan_epilogue(
        node.requant, node.clamp, node.bias, tuple(term.dtype for term in terms), result.stride, unit=target.q15_unit
    )
    spec = DepthwiseSpec(
        batch,
        source,
        result,
        node.weight.shape[1:3],
        node.stride,
        node.dilation,
        node.padding[:2],
        node.pad_value,
        epilogue,
        tile,
    )
    weights = np.zeros((*spec.kernel, result.stride), np.int16)
    weights[..., : result.channels] = np.moveaxis(node.weight[..., 0], 0, -1)
    return Kernel("depthwise.mul", _function(spec), (weights.ravel(), *constants), (spec.staging.bytes,), tile)


@cache
def _function(spec: DepthwiseSpec) -> tirx.PrimFunc:
    result, epilogue, staging = spec.result, spec.epilogue, spec.staging
    columns = spec.tile.columns
    pixel, row = staging.channels, staging.columns * staging.channels
    wide_lanes = f"int32x{LANES}"
    parameters = [
        ("result", result.dtype, spec.batch * result.elements),
        ("source", spec.source.dtype, spec.batch * spec.source.elements),
        *((f"term{j}", dtype, spec.batch * result.elements) for j, dtype in enumerate(epilogue.terms)),
        ("weights", "int16", spec.kernel[0] * spec.kernel[1] * result.stride),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
        ("staged", staging.dtype, staging.elements),
    ]

    def body(output: tirx.Buffer, source: tirx.Buffer, *rest: tirx.Buffer) -> None:
        *terms, weights, narrow, wide, staged = rest
        accumulators = local(columns * LANES, "int32")
        staging.write_fill(staged)
        with loop(spec.batch) as n:
            staging.write_images(staged, source, n)
            with loop(result.height) as h, loop(-(-result.width // columns)) as tile, loop(result.stride // LANES) as c:
                w, channel = clipped(tile, columns, result.width), c * LANES
                for i in range(columns):
                    store(accumulators, i * LANES, vector(narrow, channel), LANES)
                corner = h * spec.stride[0] * row + w * spec.stride[1] * pixel + channel
                with loop(spec.kernel[0]) as kh, loop(spec.kernel[1]) as kw:
                    at = corner + kh * (spec.dilation[0] * row) + kw * (spec.dilation[1] * pixel)
                    weight = vector(weights, (kh * spec.kernel[1] + kw) * result.stride + channel)
                    for i in range(columns):
                        activation = vector(staged, at + i * spec.stride[1] * pixel)
                        product = activation.astype(wide_lanes) * weight.astype(wide_lanes)
                        store(accumulators, i * LANES, vector(accumulators, i * LANES) + product, LANES)
                for i in range(columns):
                    at = n * result.elements + (h * result.width + w + i) * result.stride + channel
                    epilogue.store_run(output, at, [vector(accumulators, i * LANES)], [channel], terms, (narrow, wide))

    return kernel_function(parameters, body)
