"""Convolution and matrix product on integer Tensor Cores, as an implicit matrix product.

Rows are output pixels of all samples, columns are output channels, the inner dimension is (kernel row, kernel column,
channel). A block makes one tile: it copies slices of A (windows, gathered on the way) and B (packed weights) to shared
memory, some slices ahead of the one that is multiplied, and requantizes its sums in registers.

A lies in shared memory in rows of ``depth`` bytes whose 16-byte chunks are permuted, so that ldmatrix meets no bank
twice. B was packed in the order in which lanes read it. Output channels are dealt to the columns of B's tiles such that
a lane's sums are those of consecutive channels: it stores up to 16 bytes at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import Expr, Kernel, store, when
from intcert.compile.kernels.cuda.base import (
    PER_SAMPLE,
    WORD,
    activations,
    barrier,
    byte,
    device_function,
    finish,
    pack,
    registers,
    shared,
    unroll,
)
from intcert.compile.kernels.cuda.mma import (
    CHUNK,
    COLUMNS,
    DEPTH,
    LANES,
    ROWS,
    commit,
    copy,
    load_matrices,
    multiply,
    wait,
)
from intcert.compile.kernels.cuda.tile import WARPS, MmaTile, choose_tile, tiles_for
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.layout import Layout, round_up
from intcert.compile.nodes import Conv2d, Linear
from intcert.targets import CudaTarget, MmaUnit

CHUNK_WORDS = CHUNK // WORD


@dataclass(frozen=True)
class Windows:
    """Images and windows of a convolution; a linear layer has windows of one pixel."""

    source: Layout
    result: Layout
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # top, left
    dilation: tuple[int, int]
    fill: int

    @property
    def granule(self) -> int:
        """Bytes that are copied at once: those of a pixel that hold channels, up to a chunk."""
        return next((size for size in (4, 8) if self.source.channels <= size), CHUNK)

    @property
    def tap(self) -> int:
        """Bytes of a pixel that take part."""
        return round_up(self.source.channels, self.granule)

    @property
    def inner(self) -> int:
        """Bytes of a window."""
        return self.kernel[0] * self.kernel[1] * self.tap

    @property
    def padded(self) -> bool:
        """Whether a window may leave the source."""
        ends = [
            (extent - 1) * self.stride[axis] - self.padding[axis] + (self.kernel[axis] - 1) * self.dilation[axis]
            for axis, extent in enumerate((self.result.height, self.result.width))
        ]
        return any(self.padding) or ends[0] >= self.source.height or ends[1] >= self.source.width


@dataclass(frozen=True)
class ConvSpec:
    """Everything that shapes the generated code; equal specs share one function."""

    unit: MmaUnit
    asynchronous: bool
    windows: Windows
    epilogue: Epilogue
    tile: MmaTile

    @property
    def slices(self) -> int:
        """Slices of the inner dimension."""
        return -(-self.windows.inner // self.tile.depth)

    @property
    def column_tiles(self) -> int:
        return -(-self.windows.result.stride // self.tile.columns)


def conv2d(
    node: Conv2d | Linear,
    source: Layout,
    terms: list[Layout],
    result: Layout,
    target: CudaTarget,
    tile: MmaTile | None = None,
) -> Kernel:
    """Kernel of an ungrouped convolution or of a linear layer. tile: one of ``conv2d_tiles``, by default the first."""
    weight = _weight(node)
    windows = windows_of(node, source, result)
    dtypes = tuple(term.dtype for term in terms)
    epilogue, constants = plan_epilogue(node.requant, node.clamp, node.bias, dtypes, result.stride)
    tile = tile or choose_tile(windows.inner, result.stride, target)
    spec = ConvSpec(target.mma, target.async_copy, windows, epilogue, tile)
    name = f"conv2d.mma.{target.mma.shape}"
    return Kernel(name, _function(spec), (pack_weights(spec, weight), *constants), schedule=tile)


def conv2d_tiles(node: Conv2d | Linear, source: Layout, result: Layout, target: CudaTarget) -> tuple[MmaTile, ...]:
    """The tiles that ``conv2d`` takes, its own choice first."""
    windows = windows_of(node, source, result)
    return tiles_for(windows.inner, result.stride, windows.granule, target)


def _weight(node: Conv2d | Linear) -> np.ndarray:
    """int8[O, KH, KW, I]."""
    return node.weight[:, None, None, :] if isinstance(node, Linear) else node.weight


def windows_of(node: Conv2d | Linear, source: Layout, result: Layout) -> Windows:
    """The windows of an ungrouped convolution, or of a linear layer."""
    if isinstance(node, Linear):
        return Windows(source, result, (1, 1), (1, 1), (0, 0), (1, 1), 0)
    kernel = node.weight.shape[1:3]
    return Windows(source, result, kernel, node.stride, node.padding[:2], node.dilation, node.pad_value)


def _channels(columns: int) -> np.ndarray:
    """int[columns / 8, 8]: the channel, within a warp's, that each column of each tile of B stands for."""
    tile, column = np.mgrid[: columns // COLUMNS, :COLUMNS]
    return column // 2 * (columns // 4) + 2 * tile + column % 2


def pack_weights(spec: ConvSpec, weight: np.ndarray) -> np.ndarray:
    """int8[O, KH, KW, I] to uint32[column tiles, slices, warps, steps, pairs of B's tiles, lanes, 4]."""
    tile, windows = spec.tile, spec.windows
    outputs, kernel_h, kernel_w, inputs = weight.shape
    dense = np.zeros((spec.column_tiles * tile.columns, kernel_h * kernel_w, windows.tap), np.int8)
    dense[:outputs, :, :inputs] = weight.reshape(outputs, kernel_h * kernel_w, inputs)
    inner = np.zeros((len(dense), spec.slices * tile.depth), np.int8)
    inner[:, : windows.inner] = dense.reshape(len(dense), -1)
    # [column tile, warp, channel of the warp, slice, step, half of the step, quarter, 4 bytes]
    columns = tile.warp[1]
    split = inner.reshape(spec.column_tiles, tile.column_warps, columns, spec.slices, tile.depth // DEPTH, 2, 4, WORD)[
        :, :, _channels(columns)
    ]
    # [column tile, warp, B's tile, column, slice, step, half, quarter, bytes]; a lane has a column and a quarter.
    packed = split.transpose(0, 4, 1, 5, 2, 3, 7, 6, 8)
    # [column tile, slice, warp, step, B's tile, column, quarter, half, bytes]; two tiles to a lane's 16 bytes.
    *lead, tiles, _, _, _, _ = packed.shape
    paired = packed.reshape(*lead, tiles // 2, 2, LANES, 2 * WORD).swapaxes(-3, -2)
    return np.ascontiguousarray(paired).reshape(-1).view(np.uint32)


@cache
def _function(spec: ConvSpec) -> tirx.PrimFunc:
    windows, epilogue, tile = spec.windows, spec.epilogue, spec.tile
    source, result = windows.source, windows.result
    logits = epilogue.scheme == "logits"
    threads = WARPS * LANES
    pixels = result.height * result.width
    row_tiles, column_tiles = tile.warp[0] // ROWS, tile.warp[1] // COLUMNS
    steps = tile.depth // DEPTH
    row_words, granule_words = tile.depth // WORD, windows.granule // WORD
    # Each thread copies the same part of several rows of A.
    parts = row_words // granule_words
    rows_a_turn = threads // parts
    turns = tile.rows // rows_a_turn
    a_words, b_words = tile.rows * row_words, tile.columns * row_words
    chunks = tile.depth // CHUNK
    rows_a_line = 128 // tile.depth  # of the 128 bytes that the banks hold side by side

    parameters = [
        ("result", "int32" if logits else "uint32", PER_SAMPLE),
        activations("source", source),
        *((f"term{j}", "uint32", PER_SAMPLE) for j in range(len(epilogue.terms))),
        ("weights", "uint32", spec.column_tiles * spec.slices * b_words),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]

    def a_word(row: Expr, chunk: Expr) -> Expr:
        """Where a chunk of a row of A lies in a slice."""
        return row * row_words + (chunk ^ (row // rows_a_line % chunks)) * CHUNK_WORDS

    def body(block: Expr, thread: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, values, *terms, weights, narrow, wide = buffers
        total = scalars[0] * pixels
        first_row = block // spec.column_tiles * tile.rows
        column_tile = block % spec.column_tiles
        lane, warp = thread % LANES, thread // LANES
        warp_row, warp_column = warp // tile.column_warps, warp % tile.column_warps
        a_slices, b_slices = shared(tile.stages * a_words, "uint32"), shared(tile.stages * b_words, "uint32")
        sums = registers(row_tiles * column_tiles * 4, "uint32")
        a, b = registers(4 * row_tiles, "uint32"), registers(4 * (column_tiles // 2), "uint32")
        # Per row that this thread copies: its image's first pixel (-1: no row), and the window's first row and column.
        image, top, left = (registers(turns, "int32") for _ in range(3))
        part, first_copied = thread % parts, thread // parts

        def copied_row(turn: Expr) -> Expr:
            return turn * rows_a_turn + first_copied

        with unroll(turns) as turn:
            row = first_row + copied_row(turn)
            sample = row // pixels
            image_pixel = sample * (source.height * source.width)
            store(image, turn, tirx.Select(row < total, image_pixel, tirx.const(-1, "int32")))
            store(top, turn, row % pixels // result.width * windows.stride[0] - windows.padding[0])
            store(left, turn, row % result.width * windows.stride[1] - windows.padding[1])

        def fetch(number: Expr, stage: Expr) -> None:
            """Begin to copy a slice of A and of B."""
            at = number * tile.depth + part * windows.granule
            tap, channel = at // windows.tap, at % windows.tap
            down = tap // windows.kernel[1] * windows.dilation[0]
            along = tap % windows.kernel[1] * windows.dilation[1]
            with unroll(turns) as turn:
                y, x = top[turn] + down, left[turn] + along
                conditions = [image[turn] >= 0]
                if windows.padded:
                    conditions += [y >= 0, y < source.height, x >= 0, x < source.width]
                if windows.inner % tile.depth:
                    conditions.append(at < windows.inner)
                inner_chunk = part * granule_words // CHUNK_WORDS
                target = stage * a_words + a_word(copied_row(turn), inner_chunk)
                target += part * granule_words % CHUNK_WORDS
                with tb.If(tirx.all(*conditions)):
                    with tb.Then():
                        pixel = image[turn] + y * source.width + x
                        read = pixel * (source.stride // WORD) + channel // WORD
                        copy(spec.asynchronous, a_slices, target, values, read, windows.granule)
                    with tb.Else():
                        fill = tirx.const(windows.fill % 256 * 0x01010101, "uint32")
                        filled = tirx.Broadcast(fill, granule_words) if granule_words > 1 else fill
                        store(a_slices, target, filled, granule_words)
            begin = (column_tile * spec.slices + number) * b_words
            turns_b = -(-b_words // (threads * CHUNK_WORDS))
            with unroll(turns_b) as turn:
                chunk = turn * threads + thread
                with when(chunk * CHUNK_WORDS < b_words if b_words % (threads * CHUNK_WORDS) else None):
                    copy(
                        spec.asynchronous,
                        b_slices,
                        stage * b_words + chunk * CHUNK_WORDS,
                        weights,
                        begin + chunk * CHUNK_WORDS,
                        CHUNK,
                    )

        def channel_of(word: int) -> Expr:
            """First of the four channels of a word of this lane's sums."""
            first = column_tile * tile.columns + warp_column * tile.warp[1]
            return first + lane % 4 * (tile.warp[1] // 4) + word * WORD

        def sum_of(row_tile: Expr, half: Expr, word: int, j: int) -> Expr:
            """Where the sum of channel ``channel_of(word) + j`` is, of a row tile's upper or lower half."""
            return (row_tile * column_tiles + 2 * word + j // 2) * 4 + half * 2 + j % 2

        words = column_tiles // 2
        for word in range(words):
            for j in range(WORD):
                with unroll(row_tiles) as row_tile, unroll(2) as half:
                    bias = narrow[channel_of(word) + j].astype("uint32")
                    store(sums, sum_of(row_tile, half, word, j), bias)
        ahead = tile.stages - 1
        for number in range(ahead):
            if number < spec.slices:
                fetch(tirx.const(number, "int32"), tirx.const(number, "int32"))
            commit(spec.asynchronous)
        with tb.serial(0, spec.slices) as number:
            wait(spec.asynchronous, ahead - 1)
            barrier()
            with when(number + ahead < spec.slices):
                fetch(number + ahead, (number + ahead) % tile.stages)
            commit(spec.asynchronous)
            stage = number % tile.stages
            with unroll(steps) as step:
                with unroll(row_tiles) as row_tile:
                    row = warp_row * tile.warp[0] + row_tile * ROWS + lane % ROWS
                    word = stage * a_words + a_word(row, step * 2 + lane // ROWS)
                    load_matrices(a, row_tile * 4, a_slices, word)
                with unroll(words) as pair:
                    at = ((warp_column * steps + step) * words + pair) * (LANES * CHUNK_WORDS) + lane * CHUNK_WORDS
                    store(b, pair * 4, b_slices[tirx.Ramp(stage * b_words + at, 1, CHUNK_WORDS)], CHUNK_WORDS)
                with unroll(row_tiles) as row_tile, unroll(column_tiles) as column:
                    sum_at = (row_tile * column_tiles + column) * 4
                    multiply(spec.unit, source.dtype, sums, sum_at, a, row_tile * 4, b, column * 2)

        packed = registers(words, "uint32")
        stored = [registers(words, "uint32") for _ in terms]
        with unroll(row_tiles) as row_tile, unroll(2) as half:
            row = first_row + warp_row * tile.warp[0] + row_tile * ROWS + half * (ROWS // 2) + lane // 4
            with when(row < total):
                at = row * result.stride + channel_of(0)
                for term, kept in zip(terms, stored, strict=True):
                    store(kept, 0, _run(term, at // WORD, words), words)
                for word in range(words):
                    results = [
                        finish(
                            epilogue,
                            sums[sum_of(row_tile, half, word, j)].astype("int32"),
                            [byte(k[word], j, dtype) for k, dtype in zip(stored, epilogue.terms, strict=True)],
                            channel_of(word) + j,
                            (narrow, wide),
                        )
                        for j in range(WORD)
                    ]
                    if logits:
                        for j, value in enumerate(results):
                            store(output, at + word * WORD + j, value)
                    else:
                        store(packed, word, pack(results))
                if not logits:
                    store(output, at // WORD, _run(packed, tirx.const(0, "int32"), words), words)

    def blocks(samples: Expr) -> Expr:
        return (samples * pixels + (tile.rows - 1)) // tile.rows * spec.column_tiles

    return device_function(parameters, blocks, threads, body)


def _run(buffer: tirx.Buffer, at: Expr, words: int) -> Expr:
    return buffer[tirx.Ramp(at, 1, words)] if words > 1 else buffer[at]
