"""Depthwise convolution: every channel is convolved with its own kernel, so lanes are channels and nothing is summed
across them.

Activations are read where they lie. A row outside of the image is read as the nearest one inside, with weights of 0:
rows of the result that miss the same rows of the kernel share a set of weights. Tiles that miss columns are code of
their own, without those products.

Where the dot unit takes two products a lane (vpmaddwd), they are two rows of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import (
    LANES,
    Expr,
    Index,
    Kernel,
    Schedule,
    clipped,
    kernel_function,
    local,
    loop,
    part,
    shuffled,
    splat,
    store,
    vector,
)
from intcert.compile.kernels.dot import dot_registers
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.layout import Layout
from intcert.compile.nodes import Conv2d
from intcert.targets import DotUnit, Target

COLUMNS = 4  # output pixels a tile: enough independent sums to hide a multiply
#: Where rows are multiplied in pairs: more pixels share what makes a pair, which costs more than sums in memory do.
PAIR_COLUMNS = 8
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
    """Everything that shapes the generated code; equal specs share one function.

    unit: what multiplies two rows of the kernel at once, if anything does.
    """

    unit: DotUnit | None
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
    def together(self) -> int:
        """Rows of the kernel whose weights lie together."""
        return self.unit.depth if self.unit else 1

    @property
    def row_groups(self) -> int:
        return -(-self.kernel[0] // self.together)

    @property
    def variants(self) -> tuple[tuple[int, tuple[bool, ...]], ...]:
        """(row of the result, which rows of the kernel lie inside the image) from that row on, until the next."""
        found: list[tuple[int, tuple[bool, ...]]] = []
        for h in range(self.result.height):
            rows = (h * self.stride[0] + kh * self.dilation[0] - self.padding[0] for kh in range(self.kernel[0]))
            inside = tuple(0 <= row < self.source.height for row in rows)
            if not found or inside != found[-1][1]:
                found.append((h, inside))
        return tuple(found)

    @property
    def has_edges(self) -> bool:
        """Whether missing rows add something to the sums."""
        return bool(self.pad_value) and not all(all(inside) for _, inside in self.variants)

    def column(self, w: Index, offset: int) -> Index:
        """Column of the source at an offset from the window of column ``w``."""
        return w * self.stride[1] + offset - self.padding[1]

    def tiles(self) -> tuple[list[int], range, list[int]]:
        """Tiles that miss columns on the left, by their first columns; numbers of those that miss none; the others."""
        columns, width = self.tile.columns, self.result.width
        starts = [min(number * columns, width - columns) for number in range(-(-width // columns))]
        reach = (columns - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1]
        whole = [
            number
            for number, w in enumerate(starts)
            if self.column(w, 0) >= 0 and self.column(w, reach) < self.source.width
        ]
        middle = range(whole[0], whole[-1] + 1) if whole else range(0)
        return starts[: middle.start], middle, starts[middle.stop :]

    def taps(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Offsets of the columns that a tile reads, each with (column of the tile, of the kernel) that it serves."""
        served: dict[int, list[tuple[int, int]]] = {}
        for i in range(self.tile.columns):
            for kw in range(self.kernel[1]):
                served.setdefault(i * self.stride[1] + kw * self.dilation[1], []).append((i, kw))
        yield from sorted(served.items())


def _pair_unit(target: Target) -> DotUnit | None:
    """The unit that multiplies two 16-bit operands of every lane, if the target has one."""
    return target.dot if target.dot.weight == "int16" and target.dot.depth == 2 else None


def _default_columns(target: Target) -> int:
    """As many as have their sums in the registers that a dot unit's tile would keep; more of them for pairs."""
    if _pair_unit(target):
        return PAIR_COLUMNS
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
        _pair_unit(target),
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
    name = f"depthwise.{spec.unit.name if spec.unit else 'mul'}"
    return Kernel(name, _function(spec), (*_packed(spec, weights), *constants), schedule=tile)


def _packed(spec: DepthwiseSpec, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """int16[variants, row groups, KW, channels, rows together] of int16[KH, KW, channels]; and, where missing rows add
    to the sums, what they add: int32[variants, channels]."""
    inside = np.array([rows for _, rows in spec.variants])
    rows = np.zeros((len(inside), spec.row_groups * spec.together, *weights.shape[1:]), np.int16)
    rows[:, : spec.kernel[0]] = weights * inside[:, :, None, None]
    grouped = rows.reshape(len(inside), spec.row_groups, spec.together, *weights.shape[1:])
    packed = np.ascontiguousarray(np.moveaxis(grouped, 2, -1)).ravel()
    if not spec.has_edges:
        return (packed,)
    missing = ~inside @ weights.astype(np.int64).sum(1) * spec.pad_value
    return packed, missing.astype(np.int32).ravel()


@cache
def _function(spec: DepthwiseSpec) -> tirx.PrimFunc:
    source, result, epilogue, unit = spec.source, spec.result, spec.epilogue, spec.unit
    kernel_rows, kernel_columns = spec.kernel
    columns, together = spec.tile.columns, spec.together
    variants = len(spec.variants)
    per_variant = spec.row_groups * kernel_columns * result.stride * together
    parameters = [
        ("result", result.dtype, spec.batch * result.elements),
        ("source", source.dtype, spec.batch * source.elements),
        *((f"term{j}", dtype, spec.batch * result.elements) for j, dtype in enumerate(epilogue.terms)),
        ("weights", "int16", variants * per_variant),
        *([("edges", "int32", variants * result.stride)] if spec.has_edges else []),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]

    def body(output: tirx.Buffer, values: tirx.Buffer, *rest: tirx.Buffer) -> None:
        *rest, narrow, wide = rest
        terms, (weights, *edges) = rest[: len(epilogue.terms)], rest[len(epilogue.terms) :]
        sums = local(columns * LANES, "int32")

        def pixels(n: Expr, h: Expr, kh: Index, x: Index, channel: Expr) -> Expr:
            """Where 16 channels of a pixel begin, in a row of the window of row ``h``."""
            y = h * spec.stride[0] + kh * spec.dilation[0] - spec.padding[0]
            if variants > 1:
                y = tirx.max(tirx.min(y, source.height - 1), 0)
            return n * source.elements + (y * source.width + x) * source.stride + channel

        def products(n: Expr, h: Expr, w: Index, variant: Index, channel: Expr, group: Index, rows: int) -> None:
            """Add the products of a group of ``rows`` rows of the kernel to a tile's sums."""
            for offset, served in spec.taps():
                x = spec.column(w, offset)
                outside = isinstance(w, int) and not 0 <= x < source.width
                if outside and not spec.pad_value:
                    continue
                if outside:
                    operands = _filled(spec)
                else:
                    at = [pixels(n, h, group * together + row, x, channel) for row in range(rows)]
                    operands = _operands(spec, [vector(values, start) for start in at])
                for i, kw in served:
                    tap = ((variant * spec.row_groups + group) * kernel_columns + kw) * result.stride + channel
                    for number, operand in enumerate(operands):
                        lanes = LANES // len(operands)
                        place = i * LANES + number * lanes
                        weight = vector(weights, tap * together + number * lanes * together, lanes * together)
                        store(sums, place, _added(unit, vector(sums, place, lanes), operand, weight), lanes)

        def tile(n: Expr, h: Expr, w: Index, variant: Index) -> None:
            with loop(result.stride // LANES) as c:
                channel = c * LANES
                begin = vector(narrow, channel)
                if edges:
                    begin += vector(edges[0], variant * result.stride + channel)
                for i in range(columns):
                    store(sums, i * LANES, begin, LANES)
                whole = kernel_rows // together
                with loop(whole) as group:
                    products(n, h, w, variant, channel, group, together)
                if kernel_rows % together:
                    products(n, h, w, variant, channel, whole, kernel_rows % together)
                for i in range(columns):
                    at = n * result.elements + (h * result.width + w + i) * result.stride + channel
                    epilogue.store_run(output, at, [vector(sums, i * LANES)], [channel], terms, (narrow, wide))

        left, middle, right = spec.tiles()
        with loop(spec.batch) as n, loop(result.height) as h:
            variant = sum((h >= first).astype("int32") for first, _ in spec.variants[1:])
            for w in left:
                tile(n, h, w, variant)
            if middle:
                with loop(len(middle)) as number:
                    tile(n, h, clipped(number + middle.start, columns, result.width), variant)
            for w in right:
                tile(n, h, w, variant)

    return kernel_function(parameters, body)


def _operands(spec: DepthwiseSpec, rows: list[Expr]) -> list[Expr]:
    """16 channels of one or two rows as what ``_added`` multiplies."""
    if spec.unit is None:
        return [rows[0].astype(f"int32x{LANES}")]
    lanes = spec.unit.lanes
    if len(rows) == 1:
        wide = [part(rows[0], begin, lanes).astype(f"int32x{lanes}") for begin in range(0, LANES, lanes)]
        return [tirx.reinterpret(f"int16x{2 * lanes}", half) for half in wide]
    pairs = shuffled(rows, [i // 2 + LANES * (i % 2) for i in range(2 * LANES)])
    return [part(pairs, begin, 2 * lanes).astype(f"int16x{2 * lanes}") for begin in range(0, 2 * LANES, 2 * lanes)]


def _filled(spec: DepthwiseSpec) -> list[Expr]:
    """The operands of pixels outside of the image."""
    if spec.unit is None:
        return [splat(spec.pad_value, "int32", LANES)]
    return [splat(spec.pad_value, "int16", 2 * spec.unit.lanes)] * (LANES // spec.unit.lanes)


def _added(unit: DotUnit | None, sums: Expr, operand: Expr, weight: Expr) -> Expr:
    if unit is None:
        return sums + operand * weight.astype(f"int32x{LANES}")
    return dot_registers(unit, sums, operand, weight)
