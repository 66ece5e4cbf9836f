"""The noise tables against the law they are said to have, computed here a second time with mpmath.

Nothing below reads how the tables are built: primary cells and residual columns are enumerated and must amount to the
stated integers exactly.
"""

import dataclasses
import functools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intcert.runtime.errors import ArtifactError, SigmaError
from intcert.runtime.noise import NoiseLaw, _vose_alias, noise_law, parse_sigma

SIGMAS = ["0.004", "0.12", "0.25", "0.5", "1", "4"]

# Fixed forever: a kernel, an artifact or a ledger made with one of these tables relies on it.
DIGESTS = {
    "0.12": "b6cbfdfc056b1cd3734933ae9b7c52c8ccef37f47b3a2982463ece27d0b9d481",
    "0.25": "c16335a637914b732eee8424ea613a431965a8631d9bbd4d00e925e805674009",
    "0.5": "de870f4d7c0efef8e462a1fce41cd402578ba35c040cbd70060947f2cdfeee8f",
    "1": "c41557880a32fc7f50a8a75ef32fafa1803631ec690dc533fbd8fc8664d2f9b0",
}


@functools.cache
def discrete_gaussian(sigma: str) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    """q(0) = p(0), q(k) = 2 p(k) for the magnitudes of the residual table, and the mass of all others; 1,000 bits."""
    with mpmath.workprec(1000):
        steps = mpmath.mpf(255) * mpmath.mpf(Fraction(sigma).numerator) / Fraction(sigma).denominator
        size = 1 << noise_law(sigma).L
        rho = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * steps**2)) for k in range(2 * size)]
        total = rho[0] + 2 * mpmath.fsum(rho[1:])
        q = [(1 if k == 0 else 2) * value / total for k, value in enumerate(rho)]
        return q[:size], mpmath.fsum(q[size:])


def stated_law(sigma: str) -> tuple[list[int], list[int]]:
    """The integers n(0..255) and m(x) that the specification derives from the discrete Gaussian."""
    q, _ = discrete_gaussian(sigma)
    s = noise_law(sigma).s
    block, cells = 1 << s, 1 << (15 - s)
    with mpmath.workprec(1000):
        n = [int(mpmath.floor(cells * block * min(q[a * block : (a + 1) * block]))) for a in range(255)]
        n.append(cells - sum(n))
        own = [n[x >> s] if x >> s < 255 else 0 for x in range(len(q))]
        r = [(q[x] * cells * block - own[x]) / (n[255] * block) * mpmath.mpf(2) ** 64 for x in range(len(q))]
        m = [int(mpmath.floor(value)) for value in r]
        order = sorted(range(len(r)), key=lambda x: (-(r[x] - m[x]), x))
        for x in order[: 2**64 - sum(m)]:
            m[x] += 1
    return n, m


def drawn_residual(law: NoiseLaw) -> list[int]:
    """How many of the 2^64 residual values give each magnitude, read off the table."""
    capacity = 1 << (64 - law.L)
    weights = [0] * (1 << law.L)
    for column, entry in enumerate(law.rt.tolist()):
        threshold, alias = entry >> law.L, entry % (1 << law.L)
        weights[column] += threshold
        weights[alias] += capacity - threshold
    return weights


@pytest.mark.parametrize("sigma", SIGMAS)
def test_table_sizes(sigma):
    law = noise_law(sigma)
    assert law.sigma_steps == 255 * Fraction(sigma)
    assert law.s == max(0, math.ceil(math.log2(law.sigma_steps / 64)))
    assert law.cell_bits == 7 - law.s
    assert max(10, math.ceil(math.log2(16 * law.sigma_steps))) == law.L
    assert (law.thr.shape, law.thr.dtype) == ((256,), np.uint8)
    assert (law.al.shape, law.al.dtype) == ((256,), np.uint8)
    assert (law.rt.shape, law.rt.dtype) == ((1 << law.L,), np.uint64)
    assert law.thr.max() <= 1 << law.cell_bits
    for array in (law.thr, law.al, law.rt):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("sigma", SIGMAS)
def test_primary_pairs_have_exactly_the_stated_law(sigma):
    law = noise_law(sigma)
    n, _ = stated_law(sigma)
    counts = {}
    thr, al = law.thr.tolist(), law.al.tolist()
    for column in range(256):
        for bits in range(256):
            cell = bits % (1 << law.cell_bits)
            drawn = column if cell < thr[column] else al[column]
            outcome = (bits >> 7, "escape" if drawn == 255 else (drawn << law.s) | ((bits % 128) >> law.cell_bits))
            counts[outcome] = counts.get(outcome, 0) + 1
    expected = {(sign, x): n[x >> law.s] for sign in (0, 1) for x in range(255 << law.s) if n[x >> law.s]}
    expected |= {(sign, "escape"): n[255] << law.s for sign in (0, 1)}
    assert counts == expected
    assert sum(counts.values()) == 65_536


@pytest.mark.parametrize("sigma", SIGMAS)
def test_residual_table_has_exactly_the_stated_law(sigma):
    _, m = stated_law(sigma)
    assert drawn_residual(noise_law(sigma)) == m
    assert sum(m) == 2**64


@pytest.mark.parametrize("sigma", SIGMAS)
def test_total_variation_is_bounded_tightly(sigma):
    law = noise_law(sigma)
    n, m = stated_law(sigma)
    q, beyond = discrete_gaussian(sigma)
    with mpmath.workprec(1000):
        distance = beyond
        for x, target in enumerate(q):
            primary = n[x >> law.s] if x >> law.s < 255 else 0
            drawn = (mpmath.mpf(primary) * 2**64 + (n[255] << law.s) * m[x]) / 2**79
            distance += abs(drawn - target)
        exact = distance / 2
        bound = mpmath.mpf(law.tv.numerator) / law.tv.denominator
        assert exact <= bound <= exact + mpmath.mpf(2) ** -127


def test_total_variation_at_a_quarter_is_two_to_the_minus_65_7():
    assert round(math.log2(noise_law("0.25").tv), 1) == -65.7


@pytest.mark.parametrize("sigma", SIGMAS)
def test_full_columns_are_their_own_alias(sigma):
    law = noise_law(sigma)
    full = law.thr == 1 << law.cell_bits
    assert np.array_equal(law.al[full], np.flatnonzero(full))
    own = (law.rt % np.uint64(1 << law.L)) == np.arange(len(law.rt), dtype=np.uint64)
    assert own.any()
    assert (law.rt[own] >> np.uint64(law.L) == 0).all()


def test_alias_pairs_smallest_indices_first():
    # By hand: 0 takes 3 from 1, full until then; 1, now small with 1, takes 3 from 2; 3 takes 1 from 2, left full.
    assert _vose_alias([1, 4, 8, 3], 4) == ([1, 1, 4, 3], [1, 2, 2, 2])
    # 0 takes 2 from 1, which becomes small with 2 and comes before 2; 1 takes 2 from 3, and 2 takes 3 from 3.
    assert _vose_alias([2, 4, 1, 9], 4) == ([2, 2, 1, 4], [1, 3, 3, 3])


@pytest.mark.parametrize("sigma", DIGESTS)
def test_digests_are_fixed_forever(sigma):
    assert noise_law(sigma).digest == DIGESTS[sigma]


@pytest.mark.parametrize("spelling", ["0.250", ".25", "00.25"])
def test_spellings_of_one_sigma_share_one_law(spelling):
    assert noise_law(spelling) is noise_law("0.25")
    assert noise_law(spelling).sigma == "0.25"


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 4000))
def test_every_sigma_has_a_consistent_law(thousandths):
    law = noise_law(f"{thousandths / 1000:.3f}")
    weights = drawn_residual(law)
    assert sum(weights) == 2**64
    assert min(weights) >= 0
    assert 0 < law.tv < Fraction(1, 1 << 57)
    assert NoiseLaw.from_bytes(law.to_bytes()).digest == law.digest


@pytest.mark.parametrize("text", ["", "abc", "-0.25", "1e-1", "0.25 ", "nan", "1/4", "0,25"])
def test_sigma_that_is_no_decimal_is_refused(text):
    with pytest.raises(SigmaError, match="is not a plain decimal") as error:
        noise_law(text)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0", "0.000", ".0"])
def test_sigma_zero_is_refused(text):
    with pytest.raises(SigmaError, match="is not positive"):
        noise_law(text)


@pytest.mark.parametrize(("text", "converted"), [("63.75", "0.25"), ("64", "0.25098"), ("4.0000001", "0.0156863")])
def test_sigma_on_the_pixel_scale_is_refused_with_the_conversion(text, converted):
    with pytest.raises(SigmaError, match=r"on the \[0, 1\] scale") as error:
        noise_law(text)
    assert f"{text} / 255 = {converted}" in str(error.value)


def test_largest_sigma_is_served():
    assert parse_sigma("4.0") == 4
    assert noise_law("4.0").s == 4


def test_noise_below_one_step_is_refused():
    with pytest.raises(SigmaError, match=r"'0\.0039' is 0\.9945 pixel steps"):
        noise_law("0.0039")


def test_round_trip():
    law = noise_law("0.5")
    again = NoiseLaw.from_bytes(law.to_bytes())
    for field in dataclasses.fields(NoiseLaw):
        assert np.array_equal(getattr(again, field.name), getattr(law, field.name))
    assert again.digest == law.digest


def test_tv_is_outside_the_digest_and_every_table_inside():
    law = noise_law("0.25")
    assert dataclasses.replace(law, tv=Fraction(1, 2)).digest == law.digest
    for name in ("thr", "al", "rt"):
        table = getattr(law, name).copy()
        table[17] ^= 1
        assert dataclasses.replace(law, **{name: table}).digest != law.digest
    for change in ({"sigma": "0.251"}, {"s": 1}, {"L": 11}):
        assert dataclasses.replace(law, **change).digest != law.digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data.replace(b'"s":0', b'"s":1'),
        lambda data: data.replace(b'"L":10', b'"L":"x"'),
        lambda data: data.replace(b'"sigma":"0.25"', b'"sigma":"ten"'),
        lambda data: data.replace(b'"sigma":"0.25"', b'"sigma":25'),
        lambda data: data.replace(b'"tv":', b'"vt":'),
        lambda data: data.replace(b"|u1 256", b"|i1 256", 1),
    ],
)
def test_damaged_bytes_are_an_artifact_error(damage):
    data = noise_law("0.25").to_bytes()
    broken = damage(data)
    assert broken != data
    with pytest.raises(ArtifactError, match="damaged noise law"):
        NoiseLaw.from_bytes(broken)
