"""Convolution and matrix product on a tile unit (AMX), with the whole epilogue fused.

``tile_plan.py`` cuts the work into blocks of tiles. A block starts from its biases, takes the products of every kernel
position and channel, and puts its sums into a small buffer that stays in the first-level cache, from which the epilogue
reads them. A block that would stick out is moved back inside: some outputs are computed twice, to the same value.

Blocks overlap, through all images: each tile of sums goes to memory and begins the next block before the next tile
does, while the vector unit requantizes the block before those, whose sums lie in the other half of the buffer.

Images are staged with their borders, as for the other convolutions; int8 activations need no offset here. A piece of
the reduction that is longer than what it should read reads neighbours or slack, which meet weights of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise, product
from math import prod

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, Index, Kernel, clipped, kernel_function, loop, vector, when
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

Emit = Callable[[int], None]


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
        scratch=(2 * 4 * unit.columns * unit.rows * plan.sums, *([staging.bytes + unit.depth] if staging else [])),
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


def _nothing(tile: int) -> None:
    pass


def _shares(pieces: list[Callable[[], None]], count: int) -> Iterator[list[Callable[[], None]]]:
    """The pieces in ``count`` lists, as even as can be."""
    bounds = [len(pieces) * number // count for number in range(count + 1)]
    return (pieces[begin:end] for begin, end in pairwise(bounds))


@cache
def _function(tiled: TiledConv, epilogue: Epilogue) -> tirx.PrimFunc:
    unit, geometry, plan = tiled.unit, tiled.geometry, tiled.plan
    staging, reduction = tiled.staging, tiled.reduction
    source, result = geometry.source, geometry.result
    registers = tiled.registers
    image = 0 if staging else source.elements
    weight_tile = unit.depth * unit.columns
    tile_sums = tiled.tile_rows * plan.outputs * unit.columns  # of the tiles that serve the same positions
    block_sums = plan.positions * tile_sums
    per_row = reduction.runs * reduction.pieces
    # Elements from a vector of results to the next: the same channels of the next position, or the next channels.
    advance = result.stride if plan.outputs == 1 else unit.columns

    parameters = [
        ("result", result.dtype, geometry.batch * result.elements),
        ("source", source.dtype, geometry.batch * source.elements),
        *((f"term{j}", dtype, geometry.batch * result.elements) for j, dtype in enumerate(epilogue.terms)),
        ("config", "uint8", 64),
        ("weights", "int8", registers * reduction.length * weight_tile),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
        ("sums", "int32", 2 * block_sums),
        *([("staged", staging.dtype, staging.elements + unit.depth)] if staging else []),
    ]
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

        def load_bias(tile: int, block: Expr) -> None:
            """The sums of a block begin with its biases."""
            register, _ = place(block)
            load_tile(tile, narrow, (register + tile % plan.outputs) * unit.columns, 0)

        def store_sums(tile: int, half: Expr | int) -> None:
            """A tile of sums goes to its half of the buffer, those of one position side by side."""
            p, o = divmod(tile, plan.outputs)
            stride = plan.outputs * unit.columns
            store_tile(tile, sums, half * block_sums + p * tile_sums + o * unit.columns, 4 * stride)

        def products(n: Expr, block: Expr, step: Index, before: Emit = _nothing, after: Emit = _nothing) -> None:
            """One step of the reduction; around each product comes what ``before`` and ``after`` emit for its tile."""
            register, tiles = place(block)
            kh, run, piece = step // per_row, step // reduction.pieces % reduction.runs, step % reduction.pieces
            at = kh * (geometry.dilation[0] * tiled.row) + run * reduction.step + piece * unit.depth

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

            def multiply(p: int, o: int, activations: int, weights: int) -> None:
                tile = p * plan.outputs + o
                before(tile)
                multiply_tiles(tile, activations, weights, source.dtype)
                after(tile)

            if plan.positions < plan.outputs:
                held = [load_activations(p) for p in range(plan.positions)]
                for o in range(plan.outputs):
                    moving = load_weights(o)
                    for p, tile in enumerate(held):
                        multiply(p, o, tile, moving)
            else:
                held = [load_weights(o) for o in range(plan.outputs)]
                for p in range(plan.positions):
                    moving = load_activations(p)
                    for o, tile in enumerate(held):
                        multiply(p, o, moving, tile)

        def finish(n: Expr, block: Expr, half: Expr) -> list[Callable[[], None]]:
            """What requantizes the sums of a block, a register of results at a time."""
            register, tiles = place(block)
            pieces = []
            for (p, (y, start)), image in product(enumerate(tiles), range(plan.images)):
                for stretch in tiled.stretches(p % plan.columns):
                    row, column, _ = stretch[0]
                    corner = (n + image) * result.elements + ((y + row) * result.width + column) * result.stride
                    if not plan.whole:
                        corner += start * result.stride
                    vectors = [
                        (
                            half * block_sums
                            + p * tile_sums
                            + ((w * plan.images + image) * plan.outputs + o) * unit.columns,
                            (register + o) * unit.columns,
                        )
                        for _, _, w in stretch
                        for o in range(plan.outputs)
                    ]
                    for begin in range(0, len(vectors), REGISTERS):
                        slots, channels = zip(*vectors[begin : begin + REGISTERS], strict=True)
                        at = corner + register * unit.columns + begin * advance
                        given = [vector(sums, slot, unit.columns) for slot in slots]
                        constants = (narrow, wide)
                        pieces.append(
                            partial(
                                epilogue.store_run, output, at, given, list(channels), terms, constants, step=advance
                            )
                        )
            return pieces

        blocks = prod(tiled.blocks)
        total = geometry.batch // plan.images * blocks

        def where(number: Expr) -> tuple[Expr, Expr]:
            """First image, and block in it, of a block's number.

            Before the first two blocks the epilogue finds no sums yet. It runs all the same, for the first block,
            whose results are overwritten when its turn comes.
            """
            number = tirx.max(number, 0)
            return number // blocks * plan.images, number % blocks

        configure(config)
        if staging:
            staging.write_fill(operand)
        with loop(total) as i:
            n, block = where(i)
            if staging:
                with when(tirx.EQ(block, 0)):
                    staging.write_images(operand, values, n)

            meanwhile = _shares(finish(*where(i - 2), i % 2), plan.unrolled * plan.sums)

            def turn(tile: int) -> None:
                store_sums(tile, (i + 1) % 2)
                load_bias(tile, block)

            def requantize(tile: int) -> None:
                for piece in next(meanwhile):
                    piece()

            products(n, block, 0, turn, requantize)
            for step in range(1, plan.unrolled):
                products(n, block, step, after=requantize)
            if reduction.length > plan.unrolled:
                with loop(reduction.length - plan.unrolled) as step:
                    products(n, block, step + plan.unrolled)
        for tile in range(plan.sums):
            store_sums(tile, (total - 1) % 2)
        with loop(min(total, 2)) as i:
            number = i + max(total - 2, 0)
            for piece in finish(*where(number), number % 2):
                piece()
        release()

    return kernel_function(parameters, body)
