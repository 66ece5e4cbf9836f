"""The sequential rule: its thresholds against exact rationals, and its error probability by dynamic programming."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from intcert.runtime.high_precision import context
from intcert.runtime.sequential import accept_thresholds, check_points, log_mixture, reject_thresholds
from intcert.runtime.session import ROW

ALPHA, BETA = Fraction(1, 1000), Fraction(1, 100)
P0 = st.fractions(Fraction(1, 2), Fraction(99, 100), max_denominator=1000)


def mixture(k: int, count: int, p0: Fraction) -> Fraction:
    """E_k(c) exactly: B(c + 1/2, k - c + 1/2) / B(1/2, 1/2) = (2c)! (2k - 2c)! / (4^k c! (k - c)! k!)."""
    rest = k - count
    numerator = math.factorial(2 * count) * math.factorial(2 * rest)
    denominator = 4**k * math.factorial(count) * math.factorial(rest) * math.factorial(k)
    return Fraction(numerator, denominator) / (p0**count * (1 - p0) ** rest)


def crossing_probability(points: list[int], accept: list[int], p: float) -> float:
    """P[some check point k of ``points`` sees accept[k] successes or more] at success probability ``p``."""
    alive, seen, crossed = np.ones(1), 0, 0.0
    for k, threshold in zip(points, accept, strict=True):
        step = k - seen
        alive = np.convolve(alive, stats.binom.pmf(np.arange(step + 1), step, p))
        crossed += alive[threshold:].sum()
        alive[threshold:] = 0
        seen = k
    return crossed


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [1]),
        (64, [64]),
        (65, [64, 65]),
        (256, [64, 128, 256]),
        (1000, [64, 128, 256, 512, 768, 1000]),
        (1024, [64, 128, 256, 512, 768, 1024]),
    ],
)
def test_check_points(n, expected):
    assert check_points(n) == expected


@given(st.integers(1, 300_000))
def test_check_points_are_ends_of_rows(n):
    points = check_points(n)
    assert points == sorted(set(points))
    assert points[-1] == n
    assert all(k % ROW == 0 for k in points[:-1])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.data(), P0)
def test_mixture_is_exact(k, data, p0):
    count = data.draw(st.integers(0, k))
    exact = mixture(k, count, p0)
    logarithm = context.log(context.mpf(exact.numerator)) - context.log(context.mpf(exact.denominator))
    assert abs(log_mixture(k, count, p0) - logarithm) < context.mpf(2) ** -200


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=4), P0)
def test_thresholds_are_the_stated_ones(points, p0):
    accept = accept_thresholds(points, p0, ALPHA)
    reject = reject_thresholds(points, p0, BETA)
    for k, up, down in zip(points, accept, reject, strict=True):
        above = [c for c in range(k + 1) if c >= p0 * k and mixture(k, c, p0) >= 1 / ALPHA]
        below = [c for c in range(k + 1) if c < p0 * k and mixture(k, c, p0) >= 1 / BETA]
        assert up == min(above, default=k + 1)
        assert down == max(below, default=-1)


@pytest.mark.parametrize("n", [1000, 20_000])
@pytest.mark.parametrize("p0", ["0.51", "0.7", "0.975", "0.9999"])
@pytest.mark.parametrize("alpha", ["0.001", "0.05"])
def test_crossing_probability_at_the_worst_case_is_below_alpha(n, p0, alpha):
    points = check_points(n)
    accept = accept_thresholds(points, Fraction(p0), Fraction(alpha))
    assert crossing_probability(points, accept, float(p0)) <= float(alpha)


def test_crossing_probability_grows_with_the_success_probability():
    points = check_points(2000)
    accept = accept_thresholds(points, Fraction(3, 4), ALPHA)
    probabilities = [crossing_probability(points, accept, p) for p in (0.5, 0.7, 0.74, 0.75, 0.76, 0.8, 0.9)]
    assert probabilities == sorted(probabilities)
    assert probabilities[-1] > 0.999


def test_comparing_the_mixture_itself_would_certify_hopeless_counts():
    # The trap that the thresholds avoid: E_k explodes for small counts too.
    assert log_mixture(100, 0, Fraction(51, 100)) > 68
    assert accept_thresholds([100], Fraction(51, 100), ALPHA)[0] > 51


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000), P0)
def test_no_successes_never_certify(n, p0):
    points = check_points(n)
    accept = accept_thresholds(points, p0, ALPHA)
    assert all(p0 * k <= threshold <= k + 1 for k, threshold in zip(points, accept, strict=True))
    assert min(accept) > 0
    assert all(down < up for down, up in zip(reject_thresholds(points, p0, BETA), accept, strict=True))
