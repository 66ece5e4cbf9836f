"""Convolution and matrix product on a tile unit (AMX), with the whole epilogue fused.

``tile_plan.py`` cuts the work into blocks of tiles. A block starts from its biases, takes the products of every kernel
position and channel, and puts its sums into a small buffer that stays in the first-level cache, from which the epilogue
reads them. A block that would stick out is moved back inside: some outputs are computed twice, to the same value.

Images are staged with their borders, as for the other convolutions; int8 activations need no offset here. A piece of
the reduction that is longer than what it should read reads neighbours or slack, which meet weights of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import product
from math import prod

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, Index, Kernel, clipped, kernel_function, loop, vector
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.kernels.epilogue16 import REGISTERS
from intcert.compile.kernels.geometry import conv_geometry
from intcert.compile.kernels.tile_plan import TiledConv, TilePlan, choose_tiling, folded, folded_weights, tile_plans
from intcert.compile.kernels.tiles import (
    configuration,
    configure,
    load_tile,
    multiply_tiles,
    pack_tiles,
    release,
    store_tile,
)
from intcert.compile.layout import Layout
from intcert.compile.nodes import Conv2d, Linear, LogitScale
from intcert.targets import Target


def amx_schedules(
    node: Conv2d | Linear, source: Layout, result: Layout, batch: int, target: Target
) -> tuple[TilePlan, ...]:
    """Every way to cut the convolution into tiles; the estimate's choice is the first."""
    geometry, _, _ = conv_geometry(node, source, result, batch)
    return tile_plans(target.tile, geometry, may_fold=_may_fold(node))


def _may_fold(node: Conv2d | Linear) -> bool:
    return not isinstance(node.requant, LogitScale)


def amx_conv2d(
    node: Conv2d | Linear,
    source: Layout,
    terms: list[Layout],
    result: Layout,
    batch: int,
    target: Target,
    schedule: TilePlan | None = None,
) -> Kernel:
    """Kernel of an ungrouped convolution, or of a linear layer, on the target's tile unit; without a schedule, the
    estimate's."""
    unit, requant, bias = target.tile, node.requant, node.bias
    geometry, weight, _ = conv_geometry(node, source, result, batch)
    if schedule:
        tiled = TiledConv(unit, folded(geometry, schedule.fold), schedule)
    else:
        tiled = choose_tiling(unit, geometry, may_fold=_may_fold(node))
    fold = tiled.plan.fold
    if fold > 1:
        entries = np.tile(np.minimum(np.arange(result.stride), len(bias) - 1), fold)
        weight, requant, bias = folded_weights(geometry, weight, fold), requant.select(entries), bias[entries]
    epilogue, constants = plan_epilogue(
        requant, node.clamp, bias, tuple(term.dtype for term in terms), fold * result.stride, unit=target.q15_unit
    )
    staging, plan = tiled.staging, tiled.plan
    return Kernel(
        name=f"conv2d.{unit.name}",
        function=_function(tiled, epilogue),
        constants=(
            configuration(unit, plan.sums, tiled.activation_tiles, tiled.tile_rows),
            _packed_weights(tiled, weight).ravel(),
            *constants,
        ),
        scratch=(4 * unit.columns * unit.rows * plan.sums, *([staging.bytes + unit.depth] if staging else [])),
        schedule=plan,
    )


def _packed_weights(tiled: TiledConv, weight: np.ndarray) -> np.ndarray:
    """Tiles of weights in the order of the reduction, from int8[O, KH, KW, I]."""
    reduction, outputs = tiled.reduction, tiled.geometry.result.stride
    channels = reduction.runs * reduction.run // tiled.geometry.kernel[1]
    padded = np.zeros((outputs, *weight.shape[1:3], channels), np.int8)
    padded[: len(weight), :, :, : weight.shape[3]] = weight
    pieces = np.zeros((outputs, reduction.rows, reduction.runs, reduction.pieces * tiled.unit.depth), np.int8)
    pieces[..., : reduction.run] = padded.reshape(outputs, reduction.rows, reduction.runs, reduction.run)
    return pack_tiles(tiled.unit, pieces)


@cache
def _function(tiled: TiledConv, epilogue: Epilogue) -> tirx.PrimFunc:
    unit, geometry, plan = tiled.unit, tiled.geometry, tiled.plan
    staging, reduction = tiled.staging, tiled.reduction
    source, result = geometry.source, geometry.result
    registers = tiled.registers
    image = 0 if staging else source.elements
    weight_tile = unit.depth * unit.columns
    tile_sums = tiled.tile_rows * plan.outputs * unit.columns  # of the tiles that serve the same positions

    parameters = [
        ("result", result.dtype, geometry.batch * result.elements),
        ("source", source.dtype, geometry.batch * source.elements),
        *((f"term{j}", dtype, geometry.batch * result.elements) for j, dtype in enumerate(epilogue.terms)),
        ("config", "uint8", 64),
        ("weights", "int8", registers * reduction.length * weight_tile),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
        ("sums", "int32", plan.positions * tile_sums),
        *([("staged", staging.dtype, staging.elements + unit.depth)] if staging else []),
    ]
    each = list(product(range(plan.positions), range(plan.outputs)))  # tiles of sums
    first_activation = plan.sums
    first_weight = first_activation + tiled.activation_tiles
    weight_tiles = unit.registers - first_weight

    def body(output: tirx.Buffer, values: tirx.Buffer, *rest: tirx.Buffer) -> None:
        terms, rest = rest[: len(epilogue.terms)], rest[len(epilogue.terms) :]
        config, weights, narrow, wide, sums, *staged = rest
        operand = staged[0] if staging else values

        def place(block: Expr) -> tuple[Expr, list[tuple[Expr, Expr]]]:
            """First channel tile of block number ``block``, and (row, first position) of its tiles of positions."""
            channels, rows, columns = tiled.blocks
            if plan.channels_first:
                part, where = block % channels, block // channels
            else:
                part, where = block // (rows * columns), block % (rows * columns)
            register = clipped(part, plan.outputs, registers)
            h = clipped(where // columns, plan.rows, result.height)
            starts = [tiled.tile_start(where % columns * plan.columns + c) for c in range(plan.columns)]
            return register, [(h + r, start) for r in range(plan.rows) for start in starts]

        def begin(block: Expr) -> None:
            """The sums of a block are its biases."""
            register, _ = place(block)
            for tile, (_, o) in enumerate(each):
                load_tile(tile, narrow, (register + o) * unit.columns, 0)

        def products(n: Expr, block: Expr, kh: Index, run: Index, piece: Index) -> None:
            """One step of the reduction."""
            register, tiles = place(block)
            at = kh * (geometry.dilation[0] * tiled.row) + run * reduction.step + piece * unit.depth
            step = (kh * reduction.runs + run) * reduction.pieces + piece

            def load_activations(p: int) -> int:
                y, start = tiles[p]
                corner = n * image + y * geometry.stride[0] * tiled.row + start * tiled.position
                tile = first_activation + p % tiled.activation_tiles
                load_tile(tile, operand, corner + at, tiled.position)
                return tile

            def load_weights(o: int) -> int:
                tile = first_weight + o % weight_tiles
                load_tile(tile, weights, ((register + o) * reduction.length + step) * weight_tile, unit.depth)
                return tile

            if plan.positions < plan.outputs:
                held = [load_activations(p) for p in range(plan.positions)]
                for o in range(plan.outputs):
                    moving = load_weights(o)
                    for p, tile in enumerate(held):
                        multiply_tiles(p * plan.outputs + o, tile, moving, source.dtype)
            else:
                held = [load_weights(o) for o in range(plan.outputs)]
                for p in range(plan.positions):
                    moving = load_activations(p)
                    for o, tile in enumerate(held):
                        multiply_tiles(p * plan.outputs + o, moving, tile, source.dtype)

        def end() -> None:
            """The sums go to memory, those of one position side by side."""
            stride = plan.outputs * unit.columns
            for tile, (p, o) in enumerate(each):
                store_tile(tile, sums, p * tile_sums + o * unit.columns, 4 * stride)

        def finish(n: Expr, block: Expr) -> list[Callable[[], None]]:
            """What requantizes the sums of a block, a register of results at a time."""
            register, tiles = place(block)
            images, columns = range(plan.images), range(tiled.tile_rows // plan.images)
            # Pixels lie side by side where the block has all their channels.
            runs = [list(columns)] if plan.outputs == registers else [[w] for w in columns]
            pieces = []
            for (p, (y, start)), i, run in product(enumerate(tiles), images, runs):
                corner = (n + i) * result.elements + (y * result.width + start + run[0]) * result.stride
                vectors = [
                    (
                        p * tile_sums + ((w * plan.images + i) * plan.outputs + o) * unit.columns,
                        (register + o) * unit.columns,
                    )
                    for w, o in product(run, range(plan.outputs))
                ]
                for first in range(0, len(vectors), REGISTERS):
                    at = corner + (register + first) * unit.columns
                    slots, channels = zip(*vectors[first : first + REGISTERS], strict=True)
                    given = [vector(sums, slot, unit.columns) for slot in slots]
                    pieces.append(partial(epilogue.store_run, output, at, given, list(channels), terms, (narrow, wide)))
            return pieces

        def run_block(n: Expr, block: Expr, meanwhile: list[Callable[[], None]]) -> None:
            """The sums of a block; between its products, ``meanwhile`` what needs the vector unit."""
            begin(block)
            if plan.overlapped:
                steps = list(product(range(reduction.rows), range(reduction.runs), range(reduction.pieces)))
                for number, step in enumerate(steps):
                    products(n, block, *step)
                    share = slice(*(len(meanwhile) * bound // len(steps) for bound in (number, number + 1)))
                    for piece in meanwhile[share]:
                        piece()
            else:
                for piece in meanwhile:
                    piece()
                with loop(reduction.rows) as kh, loop(reduction.runs) as run, loop(reduction.pieces) as piece:
                    products(n, block, kh, run, piece)
            end()

        configure(config)
        if staging:
            staging.write_fill(operand)
        with loop(geometry.batch // plan.images) as group:
            n = group * plan.images
            if staging:
                staging.write_images(operand, values, n)
            # The tiles are at work on a block while the vector unit finishes the one before.
            blocks = prod(tiled.blocks)
            run_block(n, tirx.const(0, "int32"), [])
            with loop(blocks - 1) as block:
                run_block(n, block + 1, finish(n, block))
            for piece in finish(n, tirx.const(blocks - 1, "int32")):
                piece()
        release()

    return kernel_function(parameters, body)
