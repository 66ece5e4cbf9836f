"""The reference executor's noise: Philox 4x32-10 and the lazy alias draw in NumPy.

Written apart from ``runtime.philox`` and from the kernels, so that agreement between them is evidence; the three share
nothing but the tables of ``NoiseLaw``. docs/noise.md defines the stream and the draw.
"""

import numpy as np
from numpy.typing import ArrayLike

from intcert.runtime.noise import NoiseLaw

_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)
_BLOCKS_AT_ONCE = 1 << 17  # keeps the temporaries of a call near the size of the processor's cache


def philox_blocks(
    c0: ArrayLike, c1: ArrayLike, c2: ArrayLike, c3: ArrayLike, key: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Philox 4x32-10 (Salmon et al., SC 2011) of many counters under one 64-bit ``key`` (low word k0, high word k1).

    ``c0`` .. ``c3`` are counter words in [0, 2^32) that broadcast together; returns the four output words as uint32
    arrays of the broadcast shape.
    """
    x0, x1, x2, x3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in (c0, c1, c2, c3)))
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a = x0 * np.uint64(0xD2511F53)
        b = x2 * np.uint64(0xCD9E8D57)
        x0, x2 = (b >> _SHIFT32) ^ x1 ^ np.uint64(k0), (a >> _SHIFT32) ^ x3 ^ np.uint64(k1)
        x1, x3 = b & _LOW32, a & _LOW32
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x0.astype(np.uint32), x1.astype(np.uint32), x2.astype(np.uint32), x3.astype(np.uint32)


def sample_noise(law: NoiseLaw, key: int, first: int, n: int, d: int) -> np.ndarray:
    """Noise of samples ``first`` .. ``first + n - 1`` of an image with ``d`` coordinates, int16[n, d] in pixel steps.

    ``key`` is the image key (64 bits, unsigned). Sample i is the same however the samples are divided into calls.

    Raises:
        ValueError: ``key`` or a sample number is outside 0 .. 2^64 - 1, or ``n`` or ``d`` is not positive.
    """
    if not 0 <= key < 1 << 64:
        raise ValueError(f"key {key} is outside 0 .. 2^64 - 1")
    if n <= 0 or d <= 0:
        raise ValueError(f"cannot draw n = {n} samples of d = {d} coordinates")
    if first < 0 or first + n > 1 << 64:
        raise ValueError(f"samples {first} .. {first + n - 1} are outside 0 .. 2^64 - 1")
    noise = np.empty((n, d), dtype=np.int16)
    rows = max(1, _BLOCKS_AT_ONCE // (-(-d // 8)))
    for start in range(0, n, rows):
        part = noise[start : start + rows]
        samples = np.arange(len(part), dtype=np.uint64) + np.uint64(first + start)
        part[:] = _draw(law, key, samples & _LOW32, samples >> _SHIFT32, d)
    return noise


def primary_draw(law: NoiseLaw, column: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The draw that two bytes decide: uint8 arrays of one shape, a column of the table and sign, block and cell bits.

    Returns the magnitude (int16, pixel steps), whether the sign is negative, and whether the draw escapes, that is,
    whether both of the others are void and ``escape_draw`` has to decide.
    """
    negative = bits >> 7 == 1
    within_block = (bits & 127) >> law.cell_bits
    cell = bits & ((1 << law.cell_bits) - 1)
    drawn = np.where(law.thr[column] > cell, column, law.al[column])
    return (drawn.astype(np.int16) << law.s) | within_block, negative, drawn == 255


def escape_draw(law: NoiseLaw, uniform: np.ndarray) -> np.ndarray:
    """The magnitude (int16, pixel steps) that 64 uniform bits (uint64 array) choose from the residual law."""
    position_bits = 64 - law.L
    column = uniform >> np.uint64(position_bits)
    position = uniform & np.uint64((1 << position_bits) - 1)
    entry = law.rt[column]
    threshold, alias = entry >> np.uint64(law.L), entry & np.uint64((1 << law.L) - 1)
    return np.where(position < threshold, column, alias).astype(np.int16)


def _draw(law: NoiseLaw, key: int, low: np.ndarray, high: np.ndarray, d: int) -> np.ndarray:
    """One row of noise for each sample number, given as two uint64[n] of 32-bit words."""
    blocks = np.arange(-(-d // 8), dtype=np.uint64)
    w0, w1, w2, w3 = philox_blocks(blocks, 0, low[:, None], high[:, None], key)
    column, bits = _bytes_of(w0, w1)[:, :d], _bytes_of(w2, w3)[:, :d]
    magnitude, negative, escaped = primary_draw(law, column, bits)

    rows, coordinates = np.nonzero(escaped)
    w0, w1, _, w3 = philox_blocks(coordinates, 1, low[rows], high[rows], key)
    magnitude[escaped] = escape_draw(law, w0.astype(np.uint64) << _SHIFT32 | w1)
    negative[escaped] = w3 & 1 == 1
    return np.where(negative, -magnitude, magnitude)


def _bytes_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The bytes of ``first << 32 | second``, least significant first: uint32[n, m] twice to uint8[n, 8 m]."""
    words = (first.astype(np.uint64) << _SHIFT32 | second).astype("<u8")
    return words.view(np.uint8)
