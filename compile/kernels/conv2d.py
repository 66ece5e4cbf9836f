"""Convolution and matrix product around a dot unit, with the whole epilogue fused.

An image is first *staged* where the unit cannot read it as it lies: padded, widened to the unit's dtype, shifted to its
signedness. Then every tile (``columns`` output pixels x ``blocks`` channel registers) keeps its accumulators in
registers through the whole reduction. A tile that would stick out at the right or at the last channel is moved back
inside: some outputs are computed twice, to the same value.

Grouped convolutions read, for each register of output channels, a window of the input channels that covers its groups;
weights outside a channel's own group are zero. Depthwise convolution has a kernel of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, Kernel, clipped, kernel_function, local, loop, store, vector
from intcert.compile.kernels.dot import activation_offset, dot, pack_weights
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.kernels.staging import Staging
from intcert.compile.layout import Layout, round_up
from intcert.compile.nodes import Conv2d, Linear
from intcert.targets import DotUnit, Target


@dataclass(frozen=True)
class Tile:
    """Output pixels and channel registers that one pass over the reduction serves."""

    columns: int
    blocks: int


@dataclass(frozen=True)
class ConvSpec:
    """Everything that shapes the generated code; equal specs share one function."""

    unit: DotUnit
    batch: int
    source: Layout
    result: Layout
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # top, left
    dilation: tuple[int, int]
    pad_value: int
    window: int  # input channels that one register of output channels reads
    grouped: bool
    epilogue: Epilogue
    tile: Tile

    @property
    def staging(self) -> Staging | None:
        """The copy that the unit reads, or None where it can read the source as it lies."""
        pointwise = self.kernel == (1, 1) and self.padding == (0, 0) and not self.grouped
        rows = (self.result.height - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        columns = (self.result.width - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1
        inside = rows <= self.source.height and columns <= self.source.width
        if self.source.dtype == self.unit.activation and pointwise and inside:
            return None
        return Staging(
            self.source,
            rows,
            columns,
            round_up(self.source.channels, self.unit.depth),
            *self.padding,
            self.unit.activation,
            self.pad_value,
            activation_offset(self.unit, self.source.dtype),
        )


def choose_tile(unit: DotUnit, width: int, registers: int, grouped: bool) -> Tile:
    """Tile with the least estimated time for a row of ``width`` pixels and ``registers`` channel registers.

    The estimate per reduction step: dots, loads of activations and weights, and the latency that too few accumulators
    leave uncovered.
    """
    latency = 10  # dots that must be in flight to hide their latency

    def cost(tile: Tile) -> float:
        tiles = -(-width // tile.columns) * -(-registers // tile.blocks)
        dots = tile.columns * tile.blocks
        return tiles * (max(dots, latency) + 0.6 * (tile.columns + tile.blocks))

    candidates = [
        Tile(columns, blocks)
        for blocks in range(1, 2 if grouped else min(registers, 4) + 1)
        for columns in range(1, min(width, unit.accumulators // blocks) + 1)
    ]
    return min(candidates, key=cost)


def conv2d(
    node: Conv2d | Linear, source: Layout, terms: list[Layout], result: Layout, batch: int, target: Target
) -> Kernel:
    """Kernel of an ungrouped or grouped convolution, or of a linear layer."""
    unit = target.dot
    if isinstance(node, Linear):
        # A batch of vectors is one row of pixels.
        weight = node.weight[:, None, None, :]
        kernel, stride, padding, dilation, groups, pad_value = (1, 1), (1, 1), (0, 0), (1, 1), 1, 0
        source = Layout(1, batch, source.channels, source.dtype)
        result = Layout(1, batch, result.channels, result.dtype)
        batch = 1
    else:
        weight, kernel, groups = node.weight, node.weight.shape[1:3], node.groups
        stride, padding, dilation, pad_value = node.stride, node.padding[:2], node.dilation, node.pad_value
        if kernel == (1, 1) and stride == (1, 1) and not any(node.padding):
            source = Layout(1, source.height * source.width, source.channels, source.dtype)
            result = Layout(1, result.height * result.width, result.channels, result.dtype)
    registers = result.stride // unit.lanes
    dense, starts, window = _dense_weights(weight, groups, unit, result.stride, source.channels)
    offset = activation_offset(unit, source.dtype)
    bias = _wrap32(node.bias.astype(np.int64) - offset * weight.astype(np.int64).reshape(len(weight), -1).sum(1))
    epilogue, constants = plan_epilogue(
        node.requant, node.clamp, bias, tuple(term.dtype for term in terms), result.stride
    )
    spec = ConvSpec(
        unit, batch, source, result, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), pad_value,
        window, groups > 1, epilogue, choose_tile(unit, result.width, registers, groups > 1),
    )  # fmt: skip
    return Kernel(
        name=f"conv2d.{unit.name}",
        function=_function(spec),
        constants=(pack_weights(unit, dense).ravel(), starts, *constants),
        scratch_bytes=spec.staging.bytes if spec.staging else 0,
    )


def _wrap32(values: np.ndarray) -> np.ndarray:
    """int64 to int32 modulo 2**32: sums that wrap on the way are exact once every product is in."""
    return (values & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def _dense_weights(
    weight: np.ndarray, groups: int, unit: DotUnit, stride: int, channels: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights with a channel window a register, padded to full registers and dots.

    weight: int8[O, KH, KW, I / groups]. Returns int8[stride, KH, KW, window], window starts
    int32[registers], and the window.
    """
    outputs, kernel_h, kernel_w, per_group = weight.shape
    padded_channels = round_up(channels, unit.depth)
    registers = stride // unit.lanes
    if groups == 1:
        window, starts = padded_channels, np.zeros(registers, np.int32)
    else:
        group_of = np.minimum(np.arange(stride), outputs - 1) // (outputs // groups)
        lows = group_of[:: unit.lanes] * per_group // unit.depth * unit.depth
        highs = (group_of[unit.lanes - 1 :: unit.lanes] + 1) * per_group
        window = min(round_up(int((highs - lows).max()), unit.depth), padded_channels)
        starts = np.minimum(lows, padded_channels - window).astype(np.int32)
    dense = np.zeros((stride, kernel_h, kernel_w, window), np.int8)
    for o in range(outputs):
        begin = o // (outputs // groups) * per_group - starts[o // unit.lanes]
        dense[o, :, :, begin : begin + per_group] = weight[o]
    return dense, starts, window


@cache
def _function(spec: ConvSpec) -> tirx.PrimFunc:
    unit, result, epilogue, staging = spec.unit, spec.result, spec.epilogue, spec.staging
    registers = result.stride // unit.lanes
    # Elements from one pixel, row and image to the next in what the dots read.
    pixel = staging.channels if staging else spec.source.stride
    row = pixel * (staging.columns if staging else spec.source.width)
    image = 0 if staging else spec.source.elements
    # Kernel columns and channels are one contiguous run unless columns are dilated or channels windowed.
    merged = staging is not None and spec.dilation[1] == 1 and not spec.grouped
    columns, run = (1, spec.kernel[1] * pixel) if merged else (spec.kernel[1], spec.window)
    steps = run // unit.depth
    packed = unit.lanes * unit.depth
    per_register = spec.kernel[0] * columns * steps * packed

    parameters = [
        ("result", result.dtype, spec.batch * result.elements),
        ("source", spec.source.dtype, spec.batch * spec.source.elements),
        *((f"term{j}", dtype, spec.batch * result.elements) for j, dtype in enumerate(epilogue.terms)),
        ("weights", unit.weight, registers * per_register),
        ("starts", "int32", registers),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
        *([("staged", staging.dtype, staging.elements)] if staging else []),
    ]

    def body(output: tirx.Buffer, source: tirx.Buffer, *rest: tirx.Buffer) -> None:
        terms, (weights, starts, narrow, wide, *staged) = rest[: len(epilogue.terms)], rest[len(epilogue.terms) :]
        operand = staged[0] if staging else source
        tile = spec.tile
        accumulators = local(tile.columns * tile.blocks * unit.lanes, "int32")
        each = [(c, b, (c * tile.blocks + b) * unit.lanes) for c in range(tile.columns) for b in range(tile.blocks)]

        def reduce(corner: Expr, register: Expr) -> None:
            """accumulators += the products of every kernel position and channel."""
            with loop(spec.kernel[0]) as kh, loop(columns) as kw, loop(steps) as k:
                at = corner + kh * (spec.dilation[0] * row) + kw * (spec.dilation[1] * pixel) + k * unit.depth
                weight = register * per_register + ((kh * columns + kw) * steps + k) * packed
                for c, b, slot in each:
                    value = dot(
                        unit,
                        vector(accumulators, slot, unit.lanes),
                        vector(operand, at + c * spec.stride[1] * pixel, unit.depth),
                        vector(weights, weight + b * per_register, packed),
                    )
                    store(accumulators, slot, value, unit.lanes)

        def finish(corner: Expr, register: Expr) -> None:
            """Requantize every accumulator into the result."""
            for c, b, slot in each:
                channel = (register + b) * unit.lanes
                at = corner + c * result.stride + channel

                def load(buffer: tirx.Buffer, base: int, channel: Expr = channel) -> Expr:
                    return vector(buffer, base + channel, unit.lanes)

                value = epilogue.result(
                    vector(accumulators, slot, unit.lanes),
                    [vector(term, at, unit.lanes) for term in terms],
                    load,
                    (narrow, wide),
                    unit.lanes,
                )
                store(output, at, value, unit.lanes)

        if staging:
            staging.write_fill(operand)
        with loop(spec.batch) as n:
            if staging:
                staging.write_image(operand, source, n)
            with (
                loop(-(-registers // tile.blocks)) as block,
                loop(result.height) as h,
                loop(-(-result.width // tile.columns)) as column,
            ):
                register = clipped(block, tile.blocks, registers)
                w = clipped(column, tile.columns, result.width)
                for _, b, slot in each:
                    bias = vector(narrow, (register + b) * unit.lanes, unit.lanes)
                    store(accumulators, slot, bias, unit.lanes)
                window = starts[register] if spec.grouped else 0
                reduce(n * image + h * spec.stride[0] * row + w * spec.stride[1] * pixel + window, register)
                finish(n * result.elements + (h * result.width + w) * result.stride, register)

    return kernel_function(parameters, body)
