"""Depthwise convolution on a dot unit with four products a lane (vpdpbusd): lanes are channels, products are columns.

Sixteen channels of an image are staged at a time, so that four neighbouring pixels are one register; two shuffles bring
the four bytes of each channel together. Where the kernel is narrow enough, the same register serves the next column of
the result too, with weights shifted by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, Kernel, clipped, kernel_function, local, loop, shuffled, store, vector
from intcert.compile.kernels.depthwise import DepthwiseTile, depthwise_tiles
from intcert.compile.kernels.dot import activation_offset, dot_registers, wrapped_bias
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.kernels.geometry import ConvGeometry, conv_geometry
from intcert.compile.kernels.staging import Staging
from intcert.compile.layout import Layout
from intcert.compile.nodes import Conv2d
from intcert.targets import DotUnit, Target

COLUMNS = 8  # output pixels a tile: enough sums in flight to hide the latency of a dot
_DWORDS = [16 * t + 4 * lane + i for lane in range(4) for t in range(4) for i in range(4)]  # four channels a lane
_BYTES = [16 * lane + 4 * t + i for lane in range(4) for i in range(4) for t in range(4)]  # four columns a channel


@dataclass(frozen=True)
class DepthwiseDotSpec:
    """Everything that shapes the generated code; equal specs share one function."""

    unit: DotUnit
    geometry: ConvGeometry
    epilogue: Epilogue
    tile: DepthwiseTile

    @property
    def staging(self) -> Staging:
        """The copy of one register's channels."""
        geometry, source = self.geometry, self.geometry.source
        return Staging(
            source, geometry.rows, geometry.columns, self.unit.lanes, *geometry.padding, self.unit.activation,
            geometry.pad_value, activation_offset(self.unit, source.dtype),
        )  # fmt: skip

    @property
    def groups(self) -> int:
        """Registers of pixels that cover a row of the kernel."""
        return -(-self.geometry.kernel[1] // self.unit.depth)

    @property
    def shared(self) -> int:
        """Columns of the result that one register of pixels serves."""
        return max((self.unit.depth - self.geometry.kernel[1]) // self.geometry.stride[1] + 1, 1)


def fits_depthwise_dot(node: Conv2d, target: Target) -> bool:
    """Whether the target has such a unit, and neighbouring products are neighbouring pixels."""
    unit = target.dot
    return unit.lanes * unit.depth == len(_BYTES) and unit.depth == 4 and node.dilation[1] == 1


def depthwise_dot_schedules(
    node: Conv2d, source: Layout, result: Layout, batch: int, target: Target
) -> tuple[DepthwiseTile, ...]:
    """Every width of a tile; the default is the first."""
    geometry, _, _ = conv_geometry(node, source, result, batch)
    return depthwise_tiles(geometry.result.width, COLUMNS)


def depthwise_dot(
    node: Conv2d,
    source: Layout,
    terms: list[Layout],
    result: Layout,
    batch: int,
    target: Target,
    schedule: DepthwiseTile | None = None,
) -> Kernel:
    """Kernel of a convolution with as many groups as input and output channels."""
    geometry, weight, _ = conv_geometry(node, source, result, batch)
    tile = schedule or depthwise_tiles(geometry.result.width, COLUMNS)[0]
    bias = wrapped_bias(target.dot, node.bias, weight, source.dtype)
    epilogue, constants = plan_epilogue(
        node.requant, node.clamp, bias, tuple(term.dtype for term in terms), result.stride, unit=target.q15_unit
    )
    spec = DepthwiseDotSpec(target.dot, geometry, epilogue, tile)
    scratch = (spec.staging.bytes + spec.unit.lanes * spec.unit.depth,)
    packed = _packed_weights(spec, weight[..., 0]).ravel()
    return Kernel(f"depthwise.{target.dot.name}", _function(spec), (packed, *constants), scratch, tile)


def _packed_weights(spec: DepthwiseDotSpec, weight: np.ndarray) -> np.ndarray:
    """int8[stride / lanes, KH, groups, shared, lanes, depth] from int8[C, KH, KW]."""
    unit, (rows, columns) = spec.unit, spec.geometry.kernel
    channels = np.zeros((spec.geometry.result.stride, rows, columns), np.int8)
    channels[: len(weight)] = weight
    blocks = channels.reshape(-1, unit.lanes, rows, columns)
    packed = np.zeros((len(blocks), rows, spec.groups, spec.shared, unit.lanes, unit.depth), np.int8)
    for group, shift, t in product(range(spec.groups), range(spec.shared), range(unit.depth)):
        column = unit.depth * group + t - shift * spec.geometry.stride[1]
        if 0 <= column < columns:
            packed[:, :, group, shift, :, t] = np.moveaxis(blocks[..., column], 1, -1)
    return packed


@cache
def _function(spec: DepthwiseDotSpec) -> tirx.PrimFunc:
    unit, geometry, epilogue, staging = spec.unit, spec.geometry, spec.epilogue, spec.staging
    source, result = geometry.source, geometry.result
    columns = spec.tile.columns
    register = unit.lanes * unit.depth
    kernel_rows = geometry.kernel[0]
    per_block = kernel_rows * spec.groups * spec.shared * register
    row = staging.columns * staging.pixel
    parameters = [
        ("result", result.dtype, geometry.batch * result.elements),
        ("source", source.dtype, geometry.batch * source.elements),
        *((f"term{j}", dtype, geometry.batch * result.elements) for j, dtype in enumerate(epilogue.terms)),
        ("weights", unit.weight, result.stride // unit.lanes * per_block),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
        ("staged", staging.dtype, staging.elements + register),
    ]

    def body(output: tirx.Buffer, values: tirx.Buffer, *rest: tirx.Buffer) -> None:
        *terms, weights, narrow, wide, staged = rest
        accumulators = local(columns * unit.lanes, "int32")
        pixels = local(register, unit.activation)

        def accumulate(corner: Expr, block: Expr, kh: int, group: int) -> None:
            """The products of one register of every pixel with its weights. corner: of the tile's first window."""
            for first in range(0, columns, spec.shared):
                at = corner + kh * geometry.dilation[0] * row + first * geometry.stride[1] * staging.pixel
                four = vector(staged, at + group * register, register)
                store(pixels, 0, shuffled([shuffled([four], _DWORDS)], _BYTES), register)
                for shift, column in enumerate(range(first, min(first + spec.shared, columns))):
                    slot = column * unit.lanes
                    weight = block * per_block + ((kh * spec.groups + group) * spec.shared + shift) * register
                    value = dot_registers(
                        unit,
                        vector(accumulators, slot, unit.lanes),
                        vector(pixels, 0, register),
                        vector(weights, weight, register),
                    )
                    store(accumulators, slot, value, unit.lanes)

        staging.write_fill(staged)
        with loop(geometry.batch) as n, loop(result.stride // unit.lanes) as block:
            channel = block * unit.lanes
            staging.write_images(staged, values, n, channel)
            with loop(result.height) as h, loop(-(-result.width // columns)) as tile:
                w = clipped(tile, columns, result.width)
                for column in range(columns):
                    store(accumulators, column * unit.lanes, vector(narrow, channel, unit.lanes), unit.lanes)
                corner = h * geometry.stride[0] * row + w * geometry.stride[1] * staging.pixel
                for kh, group in product(range(kernel_rows), range(spec.groups)):
                    accumulate(corner, block, kh, group)
                at = n * result.elements + (h * result.width + w) * result.stride + channel
                sums = [vector(accumulators, column * unit.lanes, unit.lanes) for column in range(columns)]
                epilogue.store_run(
                    output, at, sums, [channel] * columns, terms, (narrow, wide), unit.lanes, step=result.stride
                )

    return kernel_function(parameters, body)
