"""How a convolution is cut into tiles: what a tile unit (AMX) multiplies at once, and what it costs.

A *run* is a row of output positions whose operands lie at one distance from each other, so that up to 16 of them are
the rows of a tile. Rows of a tile that cross a cache line are what costs most, and two things avoid them. *Folding*
makes one position of several neighbouring columns: the same bytes are multiplied by as many sets of weights, each
shifted by a column, and the results still lie in memory as they did. And staged rows begin at cache lines.

Where a row is shorter than a tile, several images are staged with their pixels interleaved, which makes longer runs; or
a small image is one run, whose sums at the borders between rows are computed for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product
from math import gcd

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, Schedule
from intcert.compile.kernels.geometry import ConvGeometry
from intcert.compile.kernels.staging import Staging
from intcert.compile.layout import Layout, round_up
from intcert.targets import TileUnit

LINE = 64  # bytes of a cache line
WEIGHTS_IN_CACHE = 24 << 10  # bytes
UNROLLED = 18  # steps of a reduction between which the epilogue is spread
MOST_ESTIMATED_SUMS, MOST_SUMS = 4, 6  # tiles of sums in a block: of the estimate's choice, and of any
MOST_UNROLLED = 2 * UNROLLED  # where spreading it may still pay, if measured

# Cycles, measured on Sapphire Rapids: a tile product, a tile stored, and a tile loaded by how its rows are aligned.
PRODUCT, STORE = 16, 16
LOAD = {64: 8, 32: 19, 16: 36, 8: 44, 4: 50}


@dataclass(frozen=True)
class TilePlan(Schedule):
    """What is multiplied at once: ``rows`` runs x ``columns`` tiles of a run x ``outputs`` tiles of channels.

    images: how many are interleaved in a run; whole: the image is one run, the borders between its rows included;
    fold: columns of the result that are one position; channels_first: whether all channels of some positions come
    before the next positions; unrolled: steps of the reduction between which the epilogue is spread; the others are a
    loop.
    """

    rows: int
    columns: int
    outputs: int
    images: int = 1
    images: int = 1
    whole: bool = False
    fold: int = 1
    channels_first: bool = True
    unrolled: int = 1

    @property
    def positions(self) -> int:
        """Tiles of activations."""
        return self.rows * self.columns

    @property
    def sums(self) -> int:
        """Tiles of sums."""
        return self.positions * self.outputs


@dataclass(frozen=True)
class Reduction:
    """The sum over kernel positions and channels in pieces of ``unit.depth`` bytes.

    Every kernel row is ``runs`` runs of ``run`` bytes that are contiguous in what the tiles read, ``step`` bytes apart.
    """

    rows: int
    runs: int
    run: int
    step: int
    pieces: int  # of each run

    @property
    def length(self) -> int:
        """Tile products a result."""
        return self.rows * self.runs * self.pieces


@dataclass(frozen=True)
class TiledConv:
    """A convolution and how it is cut."""

    unit: TileUnit
    geometry: ConvGeometry
    plan: TilePlan

    @property
    def registers(self) -> int:
        """Tiles of output channels."""
        return self.geometry.result.stride // self.unit.columns

    @property
    def staging(self) -> Staging | None:
        """The copy that the tiles read, or None where they can read the source as it lies."""
        geometry, source = self.geometry, self.geometry.source
        if geometry.pointwise:
            return None
        channels = self._channels
        columns = round_up(geometry.columns, LINE // gcd(LINE, channels * self.plan.images))
        return Staging(
            source, geometry.rows, columns, channels, *geometry.padding, source.dtype, geometry.pad_value,
            images=self.plan.images,
        )  # fmt: skip

    @property
    def _channels(self) -> int:
        """Channels of a pixel as the tiles see it: with the spare ones, which make copies quick, unless leaving these
        out saves products."""
        source = self.geometry.source
        if self.geometry.pointwise:
            return source.stride
        return min((source.stride, round_up(source.channels, 4)), key=lambda channels: self._reduction(channels).length)

    @property
    def reduction(self) -> Reduction:
        return self._reduction(self._channels)

    def _reduction(self, channels: int) -> Reduction:
        rows, columns = self.geometry.kernel
        merged = self.plan.images == 1 and self.geometry.dilation[1] == 1
        runs, run = (1, columns * channels) if merged else (columns, channels)
        step = self.geometry.dilation[1] * self.plan.images * channels
        return Reduction(rows, runs, run, step, -(-run // self.unit.depth))

    @property
    def positions(self) -> int:
        """Positions of a run, those between the rows of a whole image included."""
        result = self.geometry.result
        between = (result.height - 1) * self.staging.columns if self.plan.whole else 0
        return between + result.width * self.plan.images

    @property
    def position(self) -> int:
        """Bytes from one position to the next in what the tiles read."""
        return self._channels if self.plan.images > 1 else self.geometry.stride[1] * self._channels

    @property
    def row(self) -> int:
        """Bytes from one row to the next in what the tiles read."""
        staging = self.staging
        return staging.columns * staging.pixel if staging else self.geometry.source.width * self._channels

    @property
    def tile_rows(self) -> int:
        """Positions of a tile."""
        return min(self.positions, self.unit.rows)

    def tile_start(self, tile: Expr) -> Expr:
        """First position of tile number ``tile`` of a run, moved back where the tile would pass the run's end."""
        start = tile * self.tile_rows
        passes = self.positions % (self.plan.columns * self.tile_rows)
        return tirx.min(start, self.positions - self.tile_rows) if passes else start

    def stretches(self, column: int) -> list[list[tuple[int, int, int]]]:
        """The results of a tile as stretches that are requantized together: (row, column, number in the tile), the
        first two from where the tile begins, or, of a whole image, from its corner. column: the tile's, in a block.

        A stretch goes along a row as far as the block has all channels of its positions, or just one tile of them.
        """
        start = min(column * self.tile_rows, self.positions - self.tile_rows)
        if self.plan.whole:
            fresh = range(column * self.tile_rows - start, self.tile_rows)  # the others are those of the tile before
            places = [(*divmod(start + w, self.staging.columns), w) for w in fresh]
            places = [place for place in places if place[1] < self.geometry.result.width]
        else:
            places = [(0, w, w) for w in range(self.tile_rows // self.plan.images)]
        if self.plan.outputs not in (1, self.registers):
            return [[place] for place in places]
        return [list(row) for _, row in groupby(places, key=lambda place: place[0])]

    @property
    def blocks(self) -> tuple[int, int, int]:
        """How many blocks cover the channels, the rows and a run."""
        plan, rows = self.plan, 1 if self.plan.whole else self.geometry.result.height
        return (
            -(-self.registers // plan.outputs),
            -(-rows // plan.rows),
            -(-self.positions // (plan.columns * self.tile_rows)),
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all packed weights."""
        return self.registers * self.unit.columns * self.unit.depth * self.reduction.length

    @property
    def activation_tiles(self) -> int:
        """How many tiles hold activations: all of a step's, or, where weights are fewer, what is left beside those."""
        plan = self.plan
        if plan.positions < plan.outputs:
            return plan.positions
        return min(plan.positions, self.unit.registers - plan.sums - plan.outputs)

    @property
    def alignment(self) -> int:
        """Bytes, up to a cache line, of which the address of every row of a tile is a multiple."""
        return max(gcd(LINE, self.position, self.row, self.reduction.step), min(LOAD))

    @property
    def cycles(self) -> float:
        """Estimated time of an image, in cycles; the epilogue, which all plans share, left out."""
        plan, reduction = self.plan, self.reduction
        load = LOAD[self.alignment]
        loads = plan.positions * load + plan.outputs * LOAD[LINE]
        # Fewer than four sums in flight do not hide the latency of a product.
        products = max(plan.sums, 3) * PRODUCT
        block = reduction.length * (max(products, loads) + 0.2 * loads) + plan.sums * (LOAD[LINE] + STORE)
        blocks = self.blocks
        return blocks[0] * blocks[1] * blocks[2] * block / plan.images


def folded(geometry: ConvGeometry, columns: int) -> ConvGeometry:
    """The same convolution with ``columns`` columns of the result as one position of as many times the channels."""
    result = geometry.result
    return replace(
        geometry,
        result=Layout(result.height, result.width // columns, columns * result.stride, result.dtype),
        kernel=(geometry.kernel[0], geometry.kernel[1] + (columns - 1) * geometry.stride[1]),
        stride=(geometry.stride[0], columns * geometry.stride[1]),
    )


def folded_weights(geometry: ConvGeometry, weight: np.ndarray, columns: int) -> np.ndarray:
    """int8[columns * stride, KH, KW', I] from int8[O, KH, KW, I]: one shifted copy for each column of a position."""
    outputs, rows, width, channels = weight.shape
    stride = geometry.result.stride
    wide = np.zeros((columns, stride, rows, width + (columns - 1) * geometry.stride[1], channels), np.int8)
    for column in range(columns):
        begin = column * geometry.stride[1]
        wide[column, :outputs, :, begin : begin + width] = weight
    return wide.reshape(columns * stride, *wide.shape[2:])


def choose_tiling(unit: TileUnit, geometry: ConvGeometry, may_fold: bool) -> TiledConv:
    """The convolution, folded and cut so that the estimated time is least.

    Where the weights stay in the first-level cache, channels come first, so that results are written a whole line at a
    time; else the weights are read once.
    """
    tilings = (tiled for tiled in _tilings(unit, geometry, may_fold) if tiled.plan.sums <= MOST_ESTIMATED_SUMS)
    tiled = min(tilings, key=lambda tiled: tiled.cycles)
    unrolled = tiled.reduction.length if tiled.reduction.length <= UNROLLED else 1
    channels_first = tiled.weight_bytes <= WEIGHTS_IN_CACHE
    return replace(tiled, plan=replace(tiled.plan, channels_first=channels_first, unrolled=unrolled))


def tile_plans(unit: TileUnit, geometry: ConvGeometry, may_fold: bool) -> tuple[TilePlan, ...]:
    """Every way to cut a convolution; the estimate's choice is the first."""
    plans = [choose_tiling(unit, geometry, may_fold).plan]
    for tiled in _tilings(unit, geometry, may_fold):
        orders = (True, False) if tiled.plan.outputs < tiled.registers else (True,)
        reduction = tiled.reduction
        unrolled = {1, reduction.runs * reduction.pieces, reduction.length}
        steps = sorted(count for count in unrolled if count <= MOST_UNROLLED)
        plans += (replace(tiled.plan, channels_first=c, unrolled=u) for c, u in product(orders, steps))
    return tuple(dict.fromkeys(plans))


def _tilings(unit: TileUnit, geometry: ConvGeometry, may_fold: bool) -> Iterator[TiledConv]:
    foldable = may_fold and not geometry.pointwise and geometry.dilation[1] == 1
    for fold in (1, 2, 4):
        if fold == 1 or (foldable and geometry.result.width % fold == 0):
            yield from _cuts(unit, folded(geometry, fold), fold)


def _cuts(unit: TileUnit, geometry: ConvGeometry, fold: int) -> Iterator[TiledConv]:
    """geometry: of the folded convolution."""
    width = geometry.result.width
    short = not geometry.pointwise and geometry.stride[1] == 1 and width < unit.rows
    for images in (1, 2, 4, 8, 16):
        if images > 1 and not (short and width * images <= unit.rows and geometry.batch % images == 0):
            continue
        for rows, columns, outputs in product(range(1, MOST_SUMS + 1), repeat=3):
            tiled = TiledConv(unit, geometry, TilePlan(rows, columns, outputs, images, fold=fold))
            fits = (
                rows <= geometry.result.height
                and columns <= -(-width * images // unit.rows)
                and outputs <= tiled.registers
                # One kind of operand is held, the other moves.
                and tiled.plan.sums + min(tiled.plan.positions, outputs) < unit.registers
            )
            if fits:
                yield tiled
    for columns, outputs in product(range(1, 5), repeat=2):
        tiled = TiledConv(unit, geometry, TilePlan(1, columns, outputs, whole=True))
        if short and geometry.stride[0] == 1 and tiled.plan.sums <= 4 and tiled.blocks[2] == 1:
            yield tiled
