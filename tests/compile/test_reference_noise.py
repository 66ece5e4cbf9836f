"""The reference's noise: equal to a scalar reading of the definition, whatever the batch, and of the right law."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from intcert.compile.reference.noise import escape_draw, philox_blocks, primary_draw, sample_noise
from intcert.runtime.noise import NoiseLaw, noise_law
from intcert.runtime.philox import philox4x32

WORD = st.integers(0, 2**32 - 1)
KEY64 = st.integers(0, 2**64 - 1)


def escaping(law: NoiseLaw) -> NoiseLaw:
    """The same law with a primary table that always escapes."""
    zeros, escapes = np.zeros(256, dtype=np.uint8), np.full(256, 255, dtype=np.uint8)
    return dataclasses.replace(law, thr=zeros, al=escapes)


def scalar_draw(law: NoiseLaw, key: int, sample: int, coordinate: int) -> int:
    """One coordinate as docs/noise.md defines it, on Python integers."""
    words, low, high = (key % 2**32, key >> 32), sample % 2**32, sample >> 32
    w0, w1, w2, w3 = philox4x32((coordinate // 8, 0, low, high), words)
    shift = 8 * (coordinate % 8)
    column, bits = ((w0 << 32 | w1) >> shift) % 256, ((w2 << 32 | w3) >> shift) % 256
    drawn = column if bits % (1 << law.cell_bits) < law.thr[column] else int(law.al[column])
    if drawn < 255:
        magnitude = (drawn << law.s) | ((bits % 128) >> law.cell_bits)
        return -magnitude if bits >> 7 else magnitude
    w0, w1, _, w3 = philox4x32((coordinate, 1, low, high), words)
    uniform = w0 << 32 | w1
    index = uniform >> (64 - law.L)
    entry = int(law.rt[index])
    magnitude = index if uniform % (1 << (64 - law.L)) < entry >> law.L else entry % (1 << law.L)
    return -magnitude if w3 & 1 else magnitude


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=5), KEY64)
def test_philox_equals_the_scalar_one(counters, key):
    outputs = philox_blocks(*(np.array(words) for words in zip(*counters, strict=True)), key)
    assert all(words.dtype == np.uint32 for words in outputs)
    expected = [philox4x32(counter, (key % 2**32, key >> 32)) for counter in counters]
    assert [tuple(block) for block in np.stack(outputs, axis=-1).tolist()] == expected


def test_philox_broadcasts_its_counters():
    outputs = philox_blocks(np.arange(3), 1, np.arange(2)[:, None], 7, 99)
    assert [words.shape for words in outputs] == [(2, 3)] * 4
    assert tuple(int(words[1, 2]) for words in outputs) == philox4x32((2, 1, 1, 7), (99, 0))


@pytest.mark.parametrize("sigma", ["0.12", "0.25", "0.5", "1", "4"])
@pytest.mark.parametrize("first", [0, 100, 2**32 - 2, 2**64 - 3])
def test_noise_equals_the_scalar_definition(sigma, first):
    law, key, d = noise_law(sigma), 0xFEDCBA9876543210, 43
    noise = sample_noise(law, key, first, 3, d)
    assert (noise.shape, noise.dtype) == ((3, d), np.int16)
    assert noise.tolist() == [[scalar_draw(law, key, first + i, j) for j in range(d)] for i in range(3)]


@pytest.mark.parametrize("sigma", ["0.25", "4"])
def test_forced_escapes_equal_the_scalar_definition(sigma):
    law, key, d = escaping(noise_law(sigma)), 0x0123456789ABCDEF, 300
    noise = sample_noise(law, key, 5, 3, d)
    assert noise.tolist() == [[scalar_draw(law, key, 5 + i, j) for j in range(d)] for i in range(3)]
    assert (noise < 0).any()
    assert (noise > 0).any()


def test_natural_escapes_occur_and_equal_the_scalar_definition():
    law, key, d = noise_law("0.25"), 3, 3072
    always = sample_noise(escaping(law), key, 0, 1, d)[0]
    noise = sample_noise(law, key, 0, 1, d)[0]
    blocks = philox_blocks(np.arange(d // 8), 0, 0, 0, key)
    column, bits = (
        np.array([(int(a) << 32 | int(b)) >> (8 * i) & 255 for a, b in zip(*pair, strict=True) for i in range(8)])
        for pair in (blocks[:2], blocks[2:])
    )
    _, _, escaped = primary_draw(law, column.astype(np.uint8), bits.astype(np.uint8))
    assert 0 < escaped.sum() < 40
    assert noise[escaped].tolist() == always[escaped].tolist()
    assert [scalar_draw(law, key, 0, int(i)) for i in np.flatnonzero(escaped)] == noise[escaped].tolist()


@pytest.mark.parametrize("sigma", ["0.12", "0.25", "0.5", "1", "4"])
def test_all_primary_pairs(sigma):
    law = noise_law(sigma)
    column, bits = (axis.ravel().astype(np.uint8) for axis in np.meshgrid(np.arange(256), np.arange(256)))
    magnitude, negative, escaped = primary_draw(law, column, bits)
    # The weights read off the table: a column's own cells and those it receives as another column's alias.
    capacity = 1 << law.cell_bits
    weights = law.thr.astype(int)
    np.add.at(weights, law.al, capacity - law.thr.astype(int))
    size = 255 << law.s
    for sign in (False, True):
        drawn = np.bincount(magnitude[~escaped & (negative == sign)], minlength=size)
        assert drawn.tolist() == np.repeat(weights[:255], 1 << law.s).tolist()
        assert int((escaped & (negative == sign)).sum()) == weights[255] << law.s


@pytest.mark.parametrize("sigma", ["0.25", "4"])
def test_residual_columns_switch_at_their_thresholds(sigma):
    law = noise_law(sigma)
    shift = 64 - law.L
    index = np.arange(1 << law.L, dtype=np.uint64)
    threshold, alias = law.rt >> np.uint64(law.L), law.rt % np.uint64(1 << law.L)
    start = index << np.uint64(shift)
    last_own = start + np.maximum(threshold, np.uint64(1)) - np.uint64(1)
    assert escape_draw(law, last_own).tolist() == np.where(threshold > 0, index, alias).tolist()
    assert escape_draw(law, start + threshold).tolist() == alias.tolist()
    assert escape_draw(law, start + np.uint64((1 << shift) - 1)).tolist() == alias.tolist()


@settings(max_examples=20, deadline=None)
@given(KEY64, st.integers(0, 2**40), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 40))
def test_samples_do_not_depend_on_the_batch(key, first, sizes, d):
    law = noise_law("0.25")
    whole = sample_noise(law, key, first, sum(sizes), d)
    position = 0
    for size in sizes:
        assert np.array_equal(sample_noise(law, key, first + position, size, d), whole[position : position + size])
        position += size


def test_coordinates_do_not_depend_on_the_dimension():
    law = noise_law("0.25")
    assert np.array_equal(sample_noise(law, 1, 0, 2, 3072)[:, :100], sample_noise(law, 1, 0, 2, 100))


def test_large_calls_are_divided_without_a_seam():
    law, d = noise_law("0.25"), 150_528
    whole = sample_noise(law, 11, 0, 9, d)
    assert np.array_equal(whole[8:], sample_noise(law, 11, 8, 1, d))


def test_stream_is_fixed_forever():
    assert sample_noise(noise_law("0.25"), 0x123456789ABCDEF0, 100, 2, 10).tolist() == [
        [50, 79, 121, -13, 51, -8, -55, -102, -23, 1],
        [-104, 84, 49, -23, 67, -28, 30, 54, 5, 140],
    ]


@pytest.mark.parametrize("sigma", ["0.12", "0.5"])
def test_chi_square_of_two_million_draws(sigma):
    law = noise_law(sigma)
    noise = sample_noise(law, 2024, 0, 700, 3072)
    steps = float(law.sigma_steps)
    reach = math.floor(3 * steps)
    values = np.arange(-reach, reach + 1)
    p = np.exp(-(values**2) / (2 * steps**2))
    p /= steps * math.sqrt(2 * math.pi)  # the sum over all integers, to double precision
    inside = noise[np.abs(noise) <= reach]
    observed = [*np.bincount(inside.ravel() + reach), noise.size - inside.size]
    expected = noise.size * np.array([*p, 1 - p.sum()])
    assert stats.chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize(
    ("key", "first", "n", "d"),
    [(-1, 0, 1, 1), (2**64, 0, 1, 1), (0, -1, 1, 1), (0, 2**64, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)],
)
def test_arguments_out_of_range_are_refused(key, first, n, d):
    with pytest.raises(ValueError, match=r"outside 0|cannot draw"):
        sample_noise(noise_law("0.25"), key, first, n, d)
