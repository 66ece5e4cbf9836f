"""Clopper-Pearson bounds and the prediction test against exact rational arithmetic and mpmath."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from intcert.runtime.confidence import (
    RELATIVE_ERROR,
    lower_bound_exceeds,
    lower_bounds,
    parse_alpha,
    predicted_class,
    upper_tail,
)
from intcert.runtime.errors import CertificateError
from intcert.runtime.high_precision import context, number

THOUSANDTH = Fraction(1, 1000)


def exact_tail(count: int, n: int, p: Fraction) -> Fraction:
    return sum((math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(count, n + 1)), Fraction(0))


def exact_lower_bound(count: int, n: int, alpha: Fraction) -> mpmath.mpf:
    """The p with P[Bin(n, p) >= count] = alpha, bisected to 80 bits; ``upper_tail`` has tests of its own below."""
    low, high = context.mpf(0), context.mpf(count) / n
    while high - low > context.mpf(2) ** -80 * high * (1 - low):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(count, n, middle) < number(alpha) else (low, middle)
    return (low + high) / 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_upper_tail_is_exact(n, data):
    count = data.draw(st.integers(0, n))
    p = Fraction(data.draw(st.integers(1, 999)), 1000)
    exact = number(exact_tail(count, n, p))
    assert abs(upper_tail(count, n, number(p)) / exact - 1) < context.mpf(2) ** -200


@pytest.mark.parametrize("count", [900, 1030, 1100, 1999, 2000])
def test_upper_tail_of_two_thousand_samples_is_exact(count):
    exact = Fraction(sum(math.comb(2000, j) for j in range(count, 2001)), 1 << 2000)
    assert abs(upper_tail(count, 2000, context.mpf(0.5)) / number(exact) - 1) < context.mpf(2) ** -200


def test_upper_tail_of_a_hundred_thousand_samples():
    expected = context.mpf(stats.binom.sf(50_399, 100_000, 0.5))
    assert abs(upper_tail(50_400, 100_000, context.mpf(0.5)) / expected - 1) < 1e-10


@pytest.mark.parametrize("alpha", ["0.001", "0.0005", "0.01", "0.000000001", "0.3"])
@pytest.mark.parametrize("n", [1, 2, 100, 1000, 100_000])
def test_float_bounds_are_a_hundred_times_better_than_assumed(alpha, n):
    counts = np.unique(np.geomspace(1, n, 5).astype(int))
    counts = np.unique([*counts, *(n + 1 - counts), (n + 1) // 2])
    p, rest = lower_bounds(counts, n, Fraction(alpha))
    for i, count in enumerate(counts.tolist()):
        exact = exact_lower_bound(count, n, Fraction(alpha))
        error = abs(p[i] / exact - 1) if exact < 0.5 else abs(rest[i] / (1 - exact) - 1)
        assert error < RELATIVE_ERROR / 100, count


def test_float_bounds_repair_the_root_search_of_scipy():
    # scipy 1.17 alone is off by 4e-11 here.
    n = 10**7
    counts = np.linspace(n // 2 + 1, n - 1, 50).astype(int)
    _, rest = lower_bounds(counts, n, THOUSANDTH)
    for count, value in zip(counts.tolist(), rest.tolist(), strict=True):
        error = value * RELATIVE_ERROR / 10
        assert lower_bound_exceeds(count, n, THOUSANDTH, 1 - context.mpf(value) - error)
        assert not lower_bound_exceeds(count, n, THOUSANDTH, 1 - context.mpf(value) + error)


def test_one_count_of_one_is_alpha():
    p, rest = lower_bounds(np.array([1]), 1, THOUSANDTH)
    assert abs(p[0] - 0.001) < 1e-18
    assert rest[0] == 1 - p[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.data())
def test_lower_bound_exceeds_is_the_test_it_inverts(n, data):
    count = data.draw(st.integers(1, n))
    p = Fraction(data.draw(st.integers(1, 9999)), 10_000)
    assert lower_bound_exceeds(count, n, THOUSANDTH, number(p)) == (exact_tail(count, n, p) < THOUSANDTH)


@pytest.mark.parametrize(("text", "value"), [("0.001", THOUSANDTH), (".01", Fraction(1, 100))])
def test_alpha(text, value):
    assert parse_alpha(text) == value


@pytest.mark.parametrize("text", ["0", "0.5", "1", "-0.1", "1e-3", "", "alpha"])
def test_alpha_that_is_no_small_probability_is_refused(text):
    with pytest.raises(CertificateError, match=r"between 0 and 0\.5") as error:
        parse_alpha(text)
    assert repr(text) in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=5).filter(any))
def test_prediction_is_the_exact_two_sided_test(counts):
    first, second = sorted(counts)[-1], sorted(counts)[-2]
    n = first + second
    p_value = min(Fraction(1), 2 * exact_tail(first, n, Fraction(1, 2)))
    expected = counts.index(first) if p_value <= THOUSANDTH else -1
    assert predicted_class(np.array(counts), "0.001") == expected


def test_prediction_needs_eleven_equal_answers_at_a_thousandth():
    # 2 * 2^-10 is above 0.001, 2 * 2^-11 below.
    assert predicted_class(np.array([0, 10, 0]), "0.001") == -1
    assert predicted_class(np.array([0, 11, 0]), "0.001") == 1
    assert predicted_class(np.array([11]), "0.001") == 0


@pytest.mark.parametrize("counts", [[0, 0, 0], [0]])
def test_prediction_from_nothing_is_refused(counts):
    with pytest.raises(CertificateError, match="no sample was counted"):
        predicted_class(np.array(counts), "0.001")
