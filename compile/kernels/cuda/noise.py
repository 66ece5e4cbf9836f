"""The noise stream on the GPU: one thread a Philox block, which decides eight coordinates (docs/noise.md).

The table of columns lies in shared memory. A coordinate that escapes draws again at once: the other threads of its warp
wait for about one such draw a block of 256 coordinates, since 0.4 % of coordinates escape.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, Kernel, store, when
from intcert.compile.kernels.cuda.base import (
    PER_SAMPLE,
    THREADS,
    barrier,
    device_function,
    registers,
    shared,
    unroll,
)
from intcert.compile.kernels.noise import ESCAPE, MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1
from intcert.runtime.noise import NoiseLaw

COORDINATES = 8  # that a Philox block decides
COLUMNS = 256


def noisy_input(law: NoiseLaw, dimension: int) -> Kernel:
    """Kernel that writes pixel + noise, int16[samples, dimension], of consecutive samples.

    Operand: the image, uint8[dimension]. Scalars: the 64-bit image key, and the first sample's number.
    """
    columns = law.thr.astype(np.uint16) | (law.al.astype(np.uint16) << 8)
    return Kernel("noise.philox", _function(dimension, law.s, law.L), (columns, law.rt))


@cache
def _function(dimension: int, shift: int, column_bits: int) -> tirx.PrimFunc:
    cell_bits = 7 - shift
    blocks = -(-dimension // COORDINATES)
    whole = dimension % COORDINATES == 0

    def body(block: Expr, thread: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        result, image, columns, residual = buffers
        samples, key, first = scalars
        table = shared(COLUMNS, "uint16")
        store(table, thread, columns[thread])
        barrier()
        item = block * THREADS + thread
        state, product = registers(4, "uint32"), registers(2, "uint64")
        drawn, noise = registers(2, "uint64"), registers(COORDINATES, "int32")
        counter = registers(1, "uint64")
        with when(item < samples * blocks):
            sample, number = item // blocks, item % blocks
            store(counter, 0, (first + sample.astype("int64")).astype("uint64"))
            sample_words = (counter[0].astype("uint32"), _high(counter[0]))
            key_words = (key.astype("uint64").astype("uint32"), _high(key.astype("uint64")))
            _philox(state, product, number.astype("uint32"), 0, sample_words, key_words)
            for half in range(2):
                store(drawn, half, _joined(state[2 * half], state[2 * half + 1]))
            for q in range(COORDINATES):
                column, low = (((drawn[half] >> _u64(8 * q)) & _u64(255)).astype("int32") for half in (0, 1))
                store(noise, q, _primary(table, column, low, shift, cell_bits))
            with unroll(COORDINATES) as q:
                coordinate = number * COORDINATES + q
                with when(tirx.EQ(noise[q], ESCAPED)):
                    _philox(state, product, coordinate.astype("uint32"), 1, sample_words, key_words)
                    store(drawn, 0, _joined(state[0], state[1]))
                    store(noise, q, _escape(drawn[0], state[3], residual, column_bits))
                with when(None if whole else coordinate < dimension):
                    pixel = image[coordinate].astype("int32") + noise[q]
                    if whole:
                        store(noise, q, pixel)
                    else:
                        store(result, sample * dimension + coordinate, pixel.astype("int16"))
            if whole:
                pairs = registers(COORDINATES // 2, "uint32")
                for pair in range(COORDINATES // 2):
                    low, high = (noise[2 * pair + i].astype("uint32") for i in (0, 1))
                    store(pairs, pair, (low & _u32(0xFFFF)) | (high << _u32(16)))
                at = item * (COORDINATES // 2)
                store(result, at, pairs[tirx.Ramp(tirx.const(0, "int32"), 1, 4)], 4)

    parameters = [
        ("result", "uint32" if whole else "int16", PER_SAMPLE),
        ("image", "uint8", dimension),
        ("columns", "uint16", COLUMNS),
        ("residual", "uint64", 1 << column_bits),
    ]
    scalars = (("key", "int64"), ("first", "int64"))
    return device_function(
        parameters, lambda samples: (samples * blocks + (THREADS - 1)) // THREADS, THREADS, body, scalars
    )


#: Marks a coordinate that the residual law decides; no noise value is as great.
ESCAPED = 1 << 20


def _primary(table: tirx.Buffer, column: Expr, low: Expr, shift: int, cell_bits: int) -> Expr:
    """Noise that a column and eight bits of sign, position and cell decide, or ESCAPED."""
    entry = table[column].astype("int32")
    own = (entry & 255) > (low & ((1 << cell_bits) - 1))
    magnitude = tirx.Select(own, column, entry >> 8)
    value = (magnitude << shift) | ((low & 127) >> cell_bits)
    signed = tirx.Select(low >= 128, 0 - value, value)
    return tirx.Select(tirx.EQ(magnitude, ESCAPE), tirx.const(ESCAPED, "int32"), signed)


def _escape(uniform: Expr, sign: Expr, residual: tirx.Buffer, column_bits: int) -> Expr:
    """Noise that 64 uniform bits and a sign choose from the residual law."""
    column = uniform >> _u64(64 - column_bits)
    entry = residual[column.astype("int32")]
    own = (uniform & _u64((1 << (64 - column_bits)) - 1)) < (entry >> _u64(column_bits))
    magnitude = tirx.Select(own, column, entry & _u64((1 << column_bits) - 1)).astype("int32")
    return tirx.Select(tirx.EQ(sign & _u32(1), _u32(1)), 0 - magnitude, magnitude)


def _philox(
    state: tirx.Buffer,
    product: tirx.Buffer,
    index: Expr,
    domain: int,
    sample: tuple[Expr, Expr],
    key: tuple[Expr, Expr],
) -> None:
    """Emit Philox 4x32-10 of the counter (index, domain, sample low, sample high); state holds the words after."""
    for position, word in enumerate((index, _u32(domain), *sample)):
        store(state, position, word)
    with unroll(ROUNDS) as r:
        keys = [word + r.astype("uint32") * _u32(weyl) for word, weyl in zip(key, (WEYL_0, WEYL_1), strict=True)]
        store(product, 0, state[0].astype("uint64") * _u64(MULTIPLIER_0))
        store(product, 1, state[2].astype("uint64") * _u64(MULTIPLIER_1))
        store(state, 0, _high(product[1]) ^ state[1] ^ keys[0])
        store(state, 2, _high(product[0]) ^ state[3] ^ keys[1])
        store(state, 1, product[1].astype("uint32"))
        store(state, 3, product[0].astype("uint32"))


def _joined(high: Expr, low: Expr) -> Expr:
    return (high.astype("uint64") << _u64(32)) | low.astype("uint64")


def _high(value: Expr) -> Expr:
    return (value >> _u64(32)).astype("uint32")


def _u32(value: int) -> Expr:
    return tirx.const(value, "uint32")


def _u64(value: int) -> Expr:
    return tirx.const(value, "uint64")
