"""Convolution and matrix product around a dot unit, with the whole epilogue fused.

An image is first *staged* where the unit cannot read it as it lies: padded, widened to the unit's dtype, shifted to its
signedness. Then every tile (``columns`` output pixels x ``blocks`` channel registers) keeps its accumulators in
registers through the whole reduction. A tile that would stick out at the right or at the last channel is moved back
inside: some outputs are computed twice, to the same value.

Grouped convolutions read, for each register of output channels, a window of the input channels that covers its groups;
weights outside a channel's own group are zero. Depthwise convolution has a kernel of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, product

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import (
    Expr,
    Kernel,
    Schedule,
    clipped,
    joined,
    kernel_function,
    local,
    loop,
    part,
    store,
    vector,
)
from intcert.compile.kernels.dot import activation_offset, dot, dot_unit, operands_at, pack_weights, wrapped_bias
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.kernels.geometry import ConvGeometry, conv_geometry
from intcert.compile.kernels.staging import Staging
from intcert.compile.layout import Layout, round_up
from intcert.compile.nodes import Conv2d, Linear
from intcert.targets import DotUnit, Target


@dataclass(frozen=True)
class Tile(Schedule):
    """Output pixels and channel registers that one pass over the reduction serves.

    channels_first: whether all channels of some pixels come before the next pixels; else a block's weights are read
    once for all pixels.
    """

    columns: int
    blocks: int
    channels_first: bool = False


@dataclass(frozen=True)
class ConvSpec:
    """Everything that shapes the generated code; equal specs share one function."""

    unit: DotUnit
    geometry: ConvGeometry
    window: int  # input channels that one register of output channels reads
    grouped: bool
    epilogue: Epilogue
    tile: Tile

    @property
    def together(self) -> int:
        """Registers of output channels whose weights lie step by step beside each other: a tile's, unless it moves."""
        registers = self.geometry.result.stride // self.unit.channels
        return 1 if registers % self.tile.blocks else self.tile.blocks

    @property
    def staging(self) -> Staging | None:
        """The copy that the unit reads, or None where it can read the source as it lies."""
        geometry, source = self.geometry, self.geometry.source
        if source.dtype == self.unit.activation and geometry.pointwise and not self.grouped:
            return None
        return Staging(
            source,
            geometry.rows,
            geometry.columns,
            round_up(source.channels, self.unit.depth),
            *geometry.padding,
            self.unit.activation,
            geometry.pad_value,
            activation_offset(self.unit, source.dtype),
        )


def choose_tile(unit: DotUnit, width: int, registers: int, grouped: bool) -> Tile:
    """Tile with the least estimated time for a row of ``width`` pixels and ``registers`` channel registers.

    The estimate per reduction step: dots, loads of activations and weights, and the latency that too few accumulators
    leave uncovered.
    """
    latency = 10  # dots that must be in flight to hide their latency

    def cost(tile: Tile) -> float:
        tiles = -(-width // tile.columns) * -(-registers // tile.blocks)
        dots = tile.columns * tile.blocks // unit.rows
        return tiles * (max(dots, latency) + 0.6 * (tile.columns + tile.blocks))

    return min(_tiles(unit, width, registers, grouped), key=cost)


def _tiles(unit: DotUnit, width: int, registers: int, grouped: bool) -> list[Tile]:
    """Every tile whose accumulators stay in registers."""
    return [
        Tile(columns, blocks)
        for blocks in range(unit.rows, 2 if grouped else min(registers, unit.blocks) + 1, unit.rows)
        for columns in range(unit.rows, min(width, unit.accumulators // blocks * unit.rows) + 1, unit.rows)
    ]


def _unit(target: Target, geometry: ConvGeometry, weight: np.ndarray, groups: int) -> DotUnit:
    """A group's channels are a window, which starts where a product of the dot unit does."""
    unit = dot_unit(target, weight, geometry.result.width if groups == 1 else 1)
    return unit.once if unit.once and geometry.result.height * geometry.result.width == 1 else unit


def conv2d_schedules(
    node: Conv2d | Linear, source: Layout, result: Layout, batch: int, target: Target
) -> tuple[Tile, ...]:
    """All tiles in both orders of the loops; the estimate's choice is the first."""
    geometry, weight, groups = conv_geometry(node, source, result, batch)
    unit = _unit(target, geometry, weight, groups)
    shape = (unit, geometry.result.width, result.stride // unit.channels, groups > 1)
    tiles = _tiles(*shape)
    orders = (tiles, [replace(tile, channels_first=True) for tile in tiles if tile.blocks < shape[2]])
    return tuple(dict.fromkeys((choose_tile(*shape), *chain(*orders))))


def conv2d(
    node: Conv2d | Linear,
    source: Layout,
    terms: list[Layout],
    result: Layout,
    batch: int,
    target: Target,
    schedule: Tile | None = None,
) -> Kernel:
    """Kernel of an ungrouped or grouped convolution, or of a linear layer; without a schedule, the estimate's."""
    geometry, weight, groups = conv_geometry(node, source, result, batch)
    unit = _unit(target, geometry, weight, groups)
    registers = result.stride // unit.channels
    dense, starts, window = _dense_weights(weight, groups, unit, result.stride, source.channels)
    bias = wrapped_bias(unit, node.bias, weight, source.dtype)
    epilogue, constants = plan_epilogue(
        node.requant, node.clamp, bias, tuple(term.dtype for term in terms), result.stride, unit=target.q15_unit
    )
    tile = schedule or choose_tile(unit, geometry.result.width, registers, groups > 1)
    spec = ConvSpec(unit, geometry, window, groups > 1, epilogue, tile)
    return Kernel(
        name=f"conv2d.{unit.name}",
        function=_function(spec),
        constants=(pack_weights(unit, dense, spec.together).ravel(), starts, *constants),
        scratch=(spec.staging.bytes,) if spec.staging else (),
        schedule=tile,
    )


def _dense_weights(
    weight: np.ndarray, groups: int, unit: DotUnit, stride: int, channels: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights with a channel window a register, padded to full registers and dots.

    weight: int8[O, KH, KW, I / groups]. Returns int8[stride, KH, KW, window], window starts
    int32[registers], and the window.
    """
    outputs, kernel_h, kernel_w, per_group = weight.shape
    padded_channels = round_up(channels, unit.depth)
    registers = stride // unit.channels
    if groups == 1:
        window, starts = padded_channels, np.zeros(registers, np.int32)
    else:
        group_of = np.minimum(np.arange(stride), outputs - 1) // (outputs // groups)
        lows = group_of[:: unit.channels] * per_group // unit.depth * unit.depth
        highs = (group_of[unit.channels - 1 :: unit.channels] + 1) * per_group
        window = min(round_up(int((highs - lows).max()), unit.depth), padded_channels)
        starts = np.minimum(lows, padded_channels - window).astype(np.int32)
    dense = np.zeros((stride, kernel_h, kernel_w, window), np.int8)
    for o in range(outputs):
        begin = o // (outputs // groups) * per_group - starts[o // unit.channels]
        dense[o, :, :, begin : begin + per_group] = weight[o]
    return dense, starts, window


@cache
def _function(spec: ConvSpec) -> tirx.PrimFunc:
    unit, epilogue, staging = spec.unit, spec.epilogue, spec.staging
    geometry, source, result = spec.geometry, spec.geometry.source, spec.geometry.result
    kernel_rows, kernel_columns = geometry.kernel
    registers = result.stride // unit.channels
    # Elements from one pixel, row and image to the next in what the dots read.
    pixel = staging.channels if staging else source.stride
    row = pixel * (staging.columns if staging else source.width)
    image = 0 if staging else source.elements
    # Kernel columns and channels are one contiguous run unless columns are dilated or channels windowed.
    merged = staging is not None and geometry.dilation[1] == 1 and not spec.grouped
    columns, run = (1, kernel_columns * pixel) if merged else (kernel_columns, spec.window)
    steps = run // unit.depth
    loads, last = divmod(steps, unit.steps)
    packed = unit.channels * unit.depth
    together = spec.together
    per_register = kernel_rows * columns * steps * packed

    parameters = [
        ("result", result.dtype, geometry.batch * result.elements),
        ("source", source.dtype, geometry.batch * source.elements),
        *((f"term{j}", dtype, geometry.batch * result.elements) for j, dtype in enumerate(epilogue.terms)),
        ("weights", unit.weight, registers * per_register),
        ("starts", "int32", registers),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
        *([("staged", staging.dtype, staging.elements)] if staging else []),
    ]

    def body(output: tirx.Buffer, values: tirx.Buffer, *rest: tirx.Buffer) -> None:
        terms, (weights, starts, narrow, wide, *staged) = rest[: len(epilogue.terms)], rest[len(epilogue.terms) :]
        operand = staged[0] if staging else values
        tile = spec.tile
        accumulators = local(tile.columns * tile.blocks * unit.channels, "int32")
        each = [  # first pixel, register of channels, place of the sums
            (c, b, (c // unit.rows * tile.blocks + b) * unit.lanes)
            for c, b in product(range(0, tile.columns, unit.rows), range(tile.blocks))
        ]

        def reduce(corner: Expr, register: Expr) -> None:
            """accumulators += the products of every kernel position and channel."""

            def weight_at(step: Expr | int, b: int) -> Expr | int:
                outer, inner = divmod(b, together)
                return outer * (together * per_register) + (step * together + inner) * packed

            def accumulate(at: Expr, weight: Expr, load: Expr | int, count: int) -> None:
                """The first ``count`` steps of one load of activations."""
                first = at + load * (unit.steps * unit.depth)
                for step, (c, b, slot) in product(range(count), each):
                    value = dot(
                        unit,
                        vector(accumulators, slot, unit.lanes),
                        [operands_at(operand, first + (c + r) * geometry.stride[1] * pixel) for r in range(unit.rows)],
                        operands_at(weights, weight + weight_at(load * unit.steps + step, b)),
                        step,
                    )
                    store(accumulators, slot, value, unit.lanes)

            with loop(kernel_rows) as kh, loop(columns) as kw:
                at = corner + kh * (geometry.dilation[0] * row) + kw * (geometry.dilation[1] * pixel)
                weight = register * per_register + (kh * columns + kw) * (steps * together * packed)
                if loads:
                    with loop(loads) as load:
                        accumulate(at, weight, load, unit.steps)
                if last:
                    accumulate(at, weight, loads, last)

        def finish(corner: Expr, register: Expr) -> None:
            """Requantize every accumulator into the result."""
            pixels = range(tile.columns)
            # Pixels lie side by side where the tile has all their channels.
            for run in [pixels] if tile.blocks == registers else [[c] for c in pixels]:
                at = corner + run[0] * result.stride + register * unit.channels
                vectors = list(product(run, range(0, tile.blocks, unit.rows)))
                sums = [sums_of(*entry) for entry in vectors]
                channels = [(register + b) * unit.channels for _, b in vectors]
                epilogue.store_run(output, at, sums, channels, terms, (narrow, wide), unit.lanes)

        def sums_of(c: int, b: int) -> Expr:
            """The sums of one pixel in a full register of channels, from channel register b on."""
            row, first = c % unit.rows, (c // unit.rows * tile.blocks + b) * unit.lanes
            slots = [first + i * unit.lanes for i in range(unit.rows)]
            parts = [part(vector(accumulators, s, unit.lanes), row * unit.channels, unit.channels) for s in slots]
            return joined(parts)

        if staging:
            staging.write_fill(operand)
        with loop(geometry.batch) as n:
            if staging:
                staging.write_images(operand, values, n)
            counts = {"block": -(-registers // tile.blocks), "h": result.height, "w": -(-result.width // tile.columns)}
            order = ("h", "w", "block") if tile.channels_first else ("block", "h", "w")
            with loop(counts[order[0]]) as i, loop(counts[order[1]]) as j, loop(counts[order[2]]) as k:
                block, h, column = map(dict(zip(order, (i, j, k), strict=True)).get, counts)
                register = clipped(block, tile.blocks, registers)
                w = clipped(column, tile.columns, result.width)
                for _, b, slot in each:
                    bias = vector(narrow, (register + b) * unit.channels, unit.channels)
                    store(accumulators, slot, joined([bias] * unit.rows), unit.lanes)
                window = starts[register] if spec.grouped else 0
                reduce(n * image + h * geometry.stride[0] * row + w * geometry.stride[1] * pixel + window, register)
                finish(n * result.elements + (h * result.width + w) * result.stride, register)

    return kernel_function(parameters, body)
