"""The noise stream on the device: Philox 4x32-10 and the table draw (docs/noise.md), added to the image's pixels.

Eight Philox blocks are computed side by side, each 32-bit word in the low half of a 64-bit lane with garbage above it,
which is masked only where a word enters a product. Eight blocks decide 64 coordinates. Escapes are rare: a sample's are
listed, and drawn eight at a time at its end.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import Expr, Kernel, kernel_function, local, loop, splat, store, typed, vector, when
from intcert.runtime.noise import NoiseLaw
from intcert.targets import Target

# Salmon et al. 2011: the multipliers and the key schedule's Weyl constants.
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF

BLOCKS = 8  # Philox blocks side by side
COORDINATES = 8 * BLOCKS  # a block decides 8 coordinates
ESCAPE = 255  # the primary column that sends a coordinate to the residual law


def noisy_input(law: NoiseLaw, dimension: int, batch: int, target: Target) -> Kernel:
    """Kernel that writes pixel + noise, int16[batch, dimension], of consecutive samples.

    Operand: the image, uint8[dimension]. Scalars: the 64-bit image key as int64, and the first sample's number.
    """
    if target.byte_lookup == "vpermb":
        columns = np.concatenate([law.thr, law.al])
    else:
        columns = law.thr.astype(np.uint16) | (law.al.astype(np.uint16) << 8)
    function = _function(dimension, batch, law.s, law.L, target.byte_lookup)
    return Kernel("noise.philox", function, (columns, law.rt), (4 * (dimension + BLOCKS),))


@cache
def _function(dimension: int, batch: int, shift: int, column_bits: int, byte_lookup: str) -> tirx.PrimFunc:
    cell_bits = 7 - shift
    parameters = [
        ("result", "int16", batch * dimension),
        ("image", "uint8", dimension),
        ("columns", "uint8", 512) if byte_lookup == "vpermb" else ("columns", "uint16", 256),
        ("residual", "uint64", 1 << column_bits),
        ("escaped", "int32", dimension + BLOCKS),
    ]

    def body(
        result: tirx.Buffer,
        image: tirx.Buffer,
        table: tirx.Buffer,
        residual: tirx.Buffer,
        escaped: tirx.Buffer,
        key: Expr,
        first: Expr,
    ) -> None:
        words = [local(BLOCKS, "uint64") for _ in range(6)]
        columns, lows, magnitudes = (local(COORDINATES, "uint8") for _ in range(3))
        pending, count = local(1, "uint64"), local(1, "int32")
        drawn = local(BLOCKS, "int32")
        key_words = (_low(_u64(key)), _u64(key) >> _u64(32))

        def draw(group: Expr, size: int, sample: Expr, sample_words: tuple[Expr, Expr]) -> None:
            """The ``size`` coordinates of a group, and the list of those that escape."""
            _philox(words, tirx.Ramp(_u64(group * BLOCKS), _u64(1), BLOCKS), 0, sample_words, key_words)
            for half, bytes_ in enumerate((columns, lows)):
                store(bytes_, 0, tirx.reinterpret(typed("uint8", COORDINATES), _pair(words, 2 * half)), COORDINATES)
            _look_up(byte_lookup, table, columns, lows, magnitudes, (1 << cell_bits) - 1)
            at = group * COORDINATES
            whole = size == COORDINATES
            for start in range(0, COORDINATES, 32) if whole else range(size):
                lanes = 32 if whole else 1
                magnitude, low = (vector(b, start, lanes).astype(typed("int16", lanes)) for b in (magnitudes, lows))
                value = (magnitude << _i16(shift, lanes)) | ((low & _i16(127, lanes)) >> _i16(cell_bits, lanes))
                signed = tirx.Select(low >= _i16(128, lanes), _i16(0, lanes) - value, value)
                pixel = vector(image, at + start, lanes).astype(typed("int16", lanes))
                store(result, sample * dimension + at + start, pixel + signed, lanes)
            escapes = tirx.EQ(vector(magnitudes, 0, COORDINATES), splat(ESCAPE, "uint8", COORDINATES))
            # reinterpret() itself counts a bool as a byte; LLVM has it as the bit that is wanted.
            mask = tirx.call_intrin("uint64", "tirx.reinterpret", escapes)
            store(pending, 0, mask & _u64((1 << size) - 1))
            with tb.While(pending[0] != _u64(0)):
                lowest = tirx.call_llvm_pure_intrin("uint64", "llvm.cttz", pending[0], tirx.const(True, "bool"))
                store(escaped, count[0], at + lowest.astype("int32"))
                store(count, 0, count[0] + 1)
                store(pending, 0, pending[0] & (pending[0] - _u64(1)))

        def draw_escapes(sample: Expr, sample_words: tuple[Expr, Expr]) -> None:
            """The listed coordinates, from the residual law."""
            store(escaped, count[0], splat(0, "int32", BLOCKS), BLOCKS)
            with tb.serial(0, (count[0] + (BLOCKS - 1)) // BLOCKS) as group:
                index = vector(escaped, group * BLOCKS, BLOCKS).astype(typed("uint64", BLOCKS))
                _philox(words, index, 1, sample_words, key_words)
                with loop(BLOCKS) as q:
                    store(drawn, q, _residual_draw(words, q, residual, column_bits))
                with loop(BLOCKS) as q, when(group * BLOCKS + q < count[0]):
                    i = escaped[group * BLOCKS + q]
                    store(result, sample * dimension + i, (image[i].astype("int32") + drawn[q]).astype("int16"))

        with loop(batch) as n:
            sample = _u64(first + n.astype("int64"))
            sample_words = (_low(sample), sample >> _u64(32))
            store(count, 0, tirx.const(0, "int32"))
            whole, rest = divmod(dimension, COORDINATES)
            with loop(whole) as group:
                draw(group, COORDINATES, n, sample_words)
            if rest:
                draw(tirx.const(whole, "int32"), rest, n, sample_words)
            draw_escapes(n, sample_words)

    return kernel_function(parameters, body, scalars=("key", "first"))


def _look_up(
    byte_lookup: str, table: tirx.Buffer, columns: tirx.Buffer, lows: tirx.Buffer, magnitudes: tirx.Buffer, cells: int
) -> None:
    """Emit the primary draw: a column, or its alias where the cell is not its own. cells: mask of the cell's bits."""
    if byte_lookup == "vpermb":
        column = vector(columns, 0, COORDINATES)

        def entries(base: int) -> Expr:
            """table[base + column], from four registers of 64 entries."""
            rows = [
                tirx.call_llvm_pure_intrin(
                    "uint8x64", "llvm.x86.avx512.permvar.qi.512", vector(table, base + 64 * row, 64), column
                )
                for row in range(4)
            ]
            pairs = [tirx.Select(_bit(column, 64), rows[row + 1], rows[row]) for row in (0, 2)]
            return tirx.Select(_bit(column, 128), pairs[1], pairs[0])

        own = entries(0) > (vector(lows, 0, COORDINATES) & splat(cells, "uint8", COORDINATES))
        store(magnitudes, 0, tirx.Select(own, column, entries(256)), COORDINATES)
        return
    with loop(COORDINATES) as q:
        entry = table[columns[q].astype("int32")].astype("int32")
        own = (entry & 255) > (lows[q].astype("int32") & cells)
        store(magnitudes, q, tirx.Select(own, columns[q], (entry >> 8).astype("uint8")))


def _bit(values: Expr, bit: int) -> Expr:
    return tirx.NE(values & splat(bit, "uint8", COORDINATES), splat(0, "uint8", COORDINATES))


def _philox(
    state: list[tirx.Buffer], index: Expr, domain: int, sample: tuple[Expr, Expr], key: tuple[Expr, Expr]
) -> None:
    """Emit the ten rounds on counters (index, domain, sample low, sample high); state[0..3] hold the words after.

    Every intermediate goes through a small array: as chains of variables they would keep the simplifier busy for ever.
    """
    c0, c1, c2, c3, p0, p1 = state
    lanes = BLOCKS
    store(c0, 0, index, lanes)
    store(c1, 0, splat(domain, "uint64", lanes), lanes)
    store(c2, 0, splat(sample[0], "uint64", lanes), lanes)
    store(c3, 0, splat(sample[1], "uint64", lanes), lanes)
    half = splat(32, "uint64", lanes)
    for r in range(ROUNDS):
        k0, k1 = (
            splat(_low(word + _u64(r * weyl & WORD)), "uint64", lanes)
            for word, weyl in zip(key, (WEYL_0, WEYL_1), strict=True)
        )
        store(p0, 0, _low(vector(c0, 0, lanes), lanes) * splat(MULTIPLIER_0, "uint64", lanes), lanes)
        store(p1, 0, _low(vector(c2, 0, lanes), lanes) * splat(MULTIPLIER_1, "uint64", lanes), lanes)
        store(c0, 0, (vector(p1, 0, lanes) >> half) ^ vector(c1, 0, lanes) ^ k0, lanes)
        store(c2, 0, (vector(p0, 0, lanes) >> half) ^ vector(c3, 0, lanes) ^ k1, lanes)
        store(c1, 0, vector(p1, 0, lanes), lanes)
        store(c3, 0, vector(p0, 0, lanes), lanes)


def _pair(state: list[tirx.Buffer], first: int) -> Expr:
    """Words first and first + 1 as 64-bit numbers, the first one high."""
    high, low = (vector(state[first + j], 0, BLOCKS) for j in (0, 1))
    return (high << splat(32, "uint64", BLOCKS)) | _low(low, BLOCKS)


def _residual_draw(words: list[tirx.Buffer], block: Expr, residual: tirx.Buffer, column_bits: int) -> Expr:
    """The signed escape value, int32, from the four words of block number ``block``."""
    uniform = (words[0][block] << _u64(32)) | _low(words[1][block])
    column = uniform >> _u64(64 - column_bits)
    entry = residual[column.astype("int32")]
    own = (uniform & _u64((1 << (64 - column_bits)) - 1)) < (entry >> _u64(column_bits))
    magnitude = tirx.Select(own, column, entry & _u64((1 << column_bits) - 1)).astype("int32")
    return tirx.Select((words[3][block] & _u64(1)) == _u64(1), 0 - magnitude, magnitude)


def _u64(value: Expr | int) -> Expr:
    return tirx.const(value, "uint64") if isinstance(value, int) else value.astype("uint64")


def _i16(value: int, lanes: int) -> Expr:
    return splat(value, "int16", lanes)


def _low(word: Expr, lanes: int = 1) -> Expr:
    return word & splat(WORD, "uint64", lanes)
