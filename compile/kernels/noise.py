"""The noise stream on the device: Philox 4x32-10 and the table draw (docs/noise.md), added to the image's pixels.

Eight Philox blocks are computed side by side, each 32-bit word in the low half of a 64-bit lane with garbage above it,
which is masked only where a word enters a product. Eight blocks decide 64 coordinates.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, Kernel, kernel_function, local, loop, splat, store, typed, vector, when
from intcert.runtime.noise import NoiseLaw

# Salmon et al. 2011: the multipliers and the key schedule's Weyl constants.
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF

BLOCKS = 8  # Philox blocks side by side
COORDINATES = 8 * BLOCKS  # a block decides 8 coordinates
ESCAPE = 255  # the primary column that sends a coordinate to the residual law


def noisy_input(law: NoiseLaw, dimension: int, batch: int) -> Kernel:
    """Kernel that writes pixel + noise, int16[batch, dimension], of consecutive samples.

    Operand: the image, uint8[dimension]. Scalars: the 64-bit image key as int64, and the first sample's number.
    """
    table = law.thr.astype(np.uint16) | (law.al.astype(np.uint16) << 8)
    return Kernel("noise.philox", _function(dimension, batch, law.s, law.L), (table, law.rt))


@cache
def _function(dimension: int, batch: int, shift: int, column_bits: int) -> tirx.PrimFunc:
    cell_bits = 7 - shift
    groups = -(-dimension // COORDINATES)
    parameters = [
        ("result", "int16", batch * dimension),
        ("image", "uint8", dimension),
        ("table", "uint16", 256),
        ("residual", "uint64", 1 << column_bits),
    ]

    def body(
        result: tirx.Buffer, image: tirx.Buffer, table: tirx.Buffer, residual: tirx.Buffer, key: Expr, first: Expr
    ) -> None:
        words = [local(BLOCKS, "uint64") for _ in range(6)]
        escaped = [local(1, "uint64") for _ in range(6)]
        columns, lows, magnitudes = (local(COORDINATES, "uint8") for _ in range(3))
        key_words = (_low(_u64(key)), _u64(key) >> _u64(32))
        with loop(batch) as n:
            sample = _u64(first + n.astype("int64"))
            sample_words = (_low(sample), sample >> _u64(32))
            with loop(groups) as g:
                counter = tirx.Ramp(_u64(g * BLOCKS), _u64(1), BLOCKS)
                _philox(words, counter, 0, sample_words, key_words, BLOCKS)
                for half, target in enumerate((columns, lows)):
                    pair = _pair(words, 2 * half, BLOCKS)
                    store(target, 0, tirx.reinterpret(typed("uint8", COORDINATES), pair), COORDINATES)
                with loop(COORDINATES) as q:
                    entry = table[columns[q].astype("int32")].astype("int32")
                    own = (entry & 255) > (lows[q].astype("int32") & ((1 << cell_bits) - 1))
                    store(magnitudes, q, tirx.Select(own, columns[q], (entry >> 8).astype("uint8")))
                with loop(COORDINATES) as q:
                    i = g * COORDINATES + q
                    with when(i < dimension if dimension % COORDINATES else None):
                        low = lows[q].astype("int32")
                        drawn = (magnitudes[q].astype("int32") << shift) | ((low & 127) >> cell_bits)
                        signed = tirx.Select(low >= 128, 0 - drawn, drawn)
                        at = n * dimension + i
                        store(result, at, (image[i].astype("int32") + signed).astype("int16"))
                        with when(magnitudes[q] == tirx.const(ESCAPE, "uint8")):
                            _philox(escaped, _u64(i), 1, sample_words, key_words, 1)
                            value = _residual_draw(escaped, residual, column_bits)
                            store(result, at, (image[i].astype("int32") + value).astype("int16"))

    return kernel_function(parameters, body, scalars=("key", "first"))


def _philox(
    state: list[tirx.Buffer], index: Expr, domain: int, sample: tuple[Expr, Expr], key: tuple[Expr, Expr], lanes: int
) -> None:
    """Emit the ten rounds on counters (index, domain, sample low, sample high); state[0..3] hold the words after.

    Every intermediate goes through a small array: as chains of variables they would keep the simplifier busy for ever.
    """
    c0, c1, c2, c3, p0, p1 = state
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


def _pair(state: list[tirx.Buffer], first: int, lanes: int) -> Expr:
    """Words first and first + 1 as one 64-bit number, the first one high."""
    high, low = (vector(state[first + j], 0, lanes) for j in (0, 1))
    return (high << splat(32, "uint64", lanes)) | _low(low, lanes)


def _residual_draw(words: list[tirx.Buffer], residual: tirx.Buffer, column_bits: int) -> Expr:
    """The signed escape value, int32, from the four words of its own block."""
    uniform = _pair(words, 0, 1)
    column = uniform >> _u64(64 - column_bits)
    entry = residual[column.astype("int32")]
    own = (uniform & _u64((1 << (64 - column_bits)) - 1)) < (entry >> _u64(column_bits))
    magnitude = tirx.Select(own, column, entry & _u64((1 << column_bits) - 1)).astype("int32")
    return tirx.Select((words[3][0] & _u64(1)) == _u64(1), 0 - magnitude, magnitude)


def _u64(value: Expr | int) -> Expr:
    return tirx.const(value, "uint64") if isinstance(value, int) else value.astype("uint64")


def _low(word: Expr, lanes: int = 1) -> Expr:
    return word & splat(WORD, "uint64", lanes)
