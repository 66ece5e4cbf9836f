"""The proven radius against the exact worst case, which convolution of one-dimensional laws gives for any delta.

p*(delta) = P[<n, delta> < |delta|^2] + P[<n, delta> = |delta|^2] / 2 is the probability below which some classifier
loses its class at x + delta (Neyman and Pearson; the noise is symmetric). A sound radius has R(p*(delta)) <= |delta|.
"""

import functools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intcert.runtime.errors import CertificateError, SigmaError
from intcert.runtime.high_precision import context, normal_cdf, normal_quantile, number
from intcert.runtime.noise import noise_law
from intcert.runtime.smoothing import (
    SmoothingBound,
    certified_at,
    kernel_distance,
    radius_string,
    sampler_distance,
    smoothing_bound,
    smoothing_width,
    squared_steps,
)

SIGMA = 3  # pixel steps
DELTAS = {
    1: [(k,) for k in range(3, 16)],
    2: [(3, 0), (2, 3), (5, 5), (9, 1), (12, 0), (10, 11)],
    3: [(1, 1, 3), (4, 0, 0), (5, 5, 5), (2, 7, 11), (8, 8, 8)],
    3072: [(9,), (3,) * 3, (4, 4, 4, 3), (1,) * 9, (1,) * 20, (2,) * 16, (1,) * 81],
}
CASES = [(d, delta) for d, deltas in DELTAS.items() for delta in deltas]


@functools.cache
def bounds(d: int) -> list[SmoothingBound]:
    """One bound for every width worth trying; the best of them is as sound as each."""
    widths = [Fraction(hundredths, 100) for hundredths in range(60, 101, 5)]
    return [SmoothingBound(Fraction(SIGMA), s, d, kernel_distance(Fraction(SIGMA), s, d)) for s in widths]


@functools.cache
def projection(delta: tuple[int, ...]) -> np.ndarray:
    """The law of <n, delta>: float64[2 r + 1], index r + t for the value t."""
    values = np.arange(-25 * SIGMA, 25 * SIGMA + 1)
    base = np.exp(-(values**2) / (2 * SIGMA**2))
    base /= base.sum()
    law = np.ones(1)
    for step in delta:
        if step:
            spread = np.zeros((len(base) - 1) * step + 1)
            spread[::step] = base
            law = np.convolve(law, spread)
    return law


def worst_case_complement(delta: tuple[int, ...]) -> float:
    """1 - p*(delta), a sum of positive terms and so exact to many digits."""
    law, square = projection(delta), sum(step * step for step in delta)
    origin = len(law) // 2
    return law[origin + square + 1 :].sum() + law[origin + square] / 2


@pytest.mark.parametrize(("d", "delta"), CASES)
def test_radius_against_the_exact_worst_case(d, delta):
    length = context.sqrt(sum(step * step for step in delta))
    assert SIGMA <= length <= (5 if d <= 3 else 3) * SIGMA
    p = 1 - context.mpf(worst_case_complement(delta))
    radii = [bound.radius(p) for bound in bounds(d)]
    assert max(radii) <= length
    assert max(radii) >= 0.96 * length


@pytest.mark.parametrize("share", [1.0, 0.3, 0.01])
@pytest.mark.parametrize(
    ("d", "delta"), [(1, (4,)), (1, (9,)), (2, (5, 5)), (3, (2, 7, 11)), (3072, (4, 4, 4, 3)), (3072, (1,) * 20)]
)
def test_two_class_radius_against_the_exact_worst_case(d, delta, share):
    """The runner-up has ``share`` of what the class leaves; both worst regions are ends of the order of <n, delta>."""
    square = sum(step * step for step in delta)
    law = projection(delta)
    from_top = np.concatenate([[0.0], np.cumsum(law[::-1])])

    def shifted(mass: float) -> float:
        # The mass at x + delta of the region that has the top ``mass`` of <z - x, delta> at x, randomized at its edge.
        index = int(np.searchsorted(from_top, mass, side="right")) - 1
        share_of_edge = (mass - from_top[index]) / law[len(law) - 1 - index]
        reach = min(index + square, len(law) - 1)
        return from_top[reach] + share_of_edge * (from_top[min(reach + 1, len(law))] - from_top[reach])

    low, high = -60.0, math.log(0.5)
    for _ in range(200):
        middle = (low + high) / 2
        rest = math.exp(middle)
        keeps = 1 - shifted(rest) > shifted(share * rest)
        low, high = (middle, high) if keeps else (low, middle)
    # Beyond exp(high) the class is lost at x + delta: a claim there that reaches delta would be false.
    rest = math.exp(high)
    length = math.sqrt(square)
    p, q = 1 - context.mpf(rest), context.mpf(share * rest)
    radii = [bound.two_class_radius(p, q) for bound in bounds(d)]
    assert max(radii) <= length
    assert max(radii) >= 0.94 * length


@pytest.mark.parametrize("d", [1, 3072])
def test_two_classes_that_share_everything_are_the_one_class_case(d):
    for bound in bounds(d):
        for p in ("0.6", "0.9", "0.9999"):
            p_value = context.mpf(p)
            # u solves an equation by bisection; here the one-class formula is its closed form.
            difference = bound.radius(p_value) - bound.two_class_radius(p_value, 1 - p_value)
            assert abs(difference) < context.mpf(10) ** -60


def test_two_class_radius_needs_a_gap_of_four_eta():
    bound = SmoothingBound(Fraction(64), Fraction(1), 10, Fraction(1, 1000))
    p, gap = context.mpf("0.4"), context.mpf("0.004")
    assert bound.two_class_radius(p, p - gap * 1.001) > 0
    assert bound.two_class_radius(p, p - gap * 0.999) < 0
    assert bound.two_class_radius(context.mpf("0.0005"), context.mpf("0.0001")) == -context.inf


def mixture(sigma: float, s: float, z: np.ndarray) -> np.ndarray:
    """Q_0 of one coordinate at the integers z: N(0, tau^2) followed by a discrete Gaussian of width s around it."""
    variance = sigma**2 - s**2
    y = np.linspace(-12 * sigma, 12 * sigma, 20_001)  # the trapezoid rule is exact to rounding for such functions
    weights = np.exp(-(y**2) / (2 * variance)) * (y[1] - y[0]) / math.sqrt(2 * math.pi * variance)
    around = np.arange(z[0] - 20, z[-1] + 21)
    kernel = np.exp(-((around[:, None] - y) ** 2) / (2 * s**2))
    return (kernel / kernel.sum(axis=0) @ weights)[20:-20]


@pytest.mark.parametrize(("sigma", "hundredths"), [(1, 50), (1, 70), (2, 40), (2, 80), (3, 60), (3, 120)])
def test_kernel_distance_bounds_the_exact_distance(sigma, hundredths):
    z = np.arange(-14 * sigma, 14 * sigma + 1)
    q = mixture(sigma, hundredths / 100, z)
    law = np.exp(-(z**2) / (2 * sigma**2))
    eta = float(kernel_distance(Fraction(sigma), Fraction(hundredths, 100), 1))
    assert np.abs(law / law.sum() - q).sum() / 2 <= eta + 1e-12
    density = law / (sigma * math.sqrt(2 * math.pi))
    centre = np.abs(z) <= 6 * sigma
    assert (q[centre] >= (1 - eta - 1e-10) * density[centre]).all()


def test_kernel_distance_is_attained_by_the_density_ratio_at_the_image():
    # Where s is close to sigma, second-order terms are small beside e01 and the lower bound is nearly an equality.
    q = mixture(1, 0.7, np.arange(-14, 15))[14]
    eta = float(kernel_distance(Fraction(1), Fraction(7, 10), 1))
    assert 0.98 * eta < 1 - q * math.sqrt(2 * math.pi) < eta


@pytest.mark.parametrize("d", [1, 784, 3072, 150_528])
def test_kernel_distance_is_below_the_simple_bounds(d):
    sigma, s = Fraction(51, 4), Fraction(1)
    with mpmath.workprec(200):
        eps0 = 2 * mpmath.fsum(mpmath.exp(-2 * mpmath.pi**2 * k * k) for k in range(1, 10))
        eps1 = 2 * mpmath.exp(-2 * mpmath.pi**2 * mpmath.mpf("12.75") ** 2)
        simple = min((1 + eps0) ** d - 1, 1 - ((1 - eps0) / (1 + eps1)) ** d)
        eta = kernel_distance(sigma, s, d)
        assert 0 < mpmath.mpf(eta.numerator) / eta.denominator < simple


def test_kernel_distance_never_exceeds_one():
    assert kernel_distance(Fraction(3), Fraction(1, 100), 1) == 1
    assert kernel_distance(Fraction(3), Fraction(40, 100), 10**9) == 1


def test_sampler_distance_bounds_the_product_law():
    t = Fraction(1, 1000)
    for d in (1, 10, 500):
        assert 1 - (1 - t) ** d <= sampler_distance(t, d) == d * t


@pytest.mark.parametrize(("d", "width"), [(1, "1.2"), (784, "1.34"), (3072, "1.36"), (150_528, "1.43")])
def test_width_is_the_least_hundredth_that_serves(d, width):
    s = smoothing_width(Fraction(51), d)
    assert s == Fraction(width)
    with mpmath.workprec(200):

        def excess(hundredths: int) -> mpmath.mpf:
            variance = (mpmath.mpf(hundredths) / 100) ** 2
            return d * 2 * mpmath.fsum(mpmath.exp(-2 * mpmath.pi**2 * variance * k * k) for k in range(1, 20))

        hundredths = int(s * 100)
        assert excess(hundredths) <= mpmath.mpf(2) ** -40 < excess(hundredths - 1)


@pytest.mark.parametrize("steps", [Fraction(136, 100), Fraction(1)])
def test_sigma_too_small_for_any_width_is_refused(steps):
    with pytest.raises(SigmaError, match=r"too little to certify images of 3072 coordinates; give more than 0\.005333"):
        smoothing_width(steps, 3072)


def test_smallest_sigma_that_serves():
    assert smoothing_bound(noise_law("0.005334"), 3072).width == Fraction(136, 100)
    with pytest.raises(SigmaError, match="too little"):
        smoothing_bound(noise_law("0.005333"), 3072)


def test_bound_of_a_law_contains_both_errors():
    law = noise_law("0.25")
    bound = smoothing_bound(law, 3072)
    assert bound.sigma == Fraction(255, 4)
    assert bound.eta == kernel_distance(bound.sigma, bound.width, 3072) + sampler_distance(law.tv, 3072)
    assert abs(bound.tau**2 / number(Fraction(255, 4) ** 2 - Fraction(136, 100) ** 2) - 1) < context.mpf(2) ** -250


def test_radius_costs_less_than_three_ten_thousandths():
    bound = smoothing_bound(noise_law("0.25"), 3072)
    for exponent in range(3, 200):
        p = 1 - context.mpf(2) ** (context.mpf(-exponent) / 10)
        radius = bound.radius(p)
        assert radius <= 1 or radius >= (1 - context.mpf("0.0003")) * number(bound.sigma) * normal_quantile(p)


@given(st.integers(0, 60_000))
def test_threshold_inverts_the_claim(m):
    bound = smoothing_bound(noise_law("0.25"), 3072)
    threshold = bound.threshold(m)
    margin = context.mpf(2) ** -150
    assert bound.claim(threshold + margin) == m
    assert bound.claim(threshold - margin) == m - 1


def test_claims_around_a_radius_of_zero():
    bound = smoothing_bound(noise_law("0.25"), 3072)
    assert bound.claim(context.mpf(0.5)) == -1
    assert bound.claim(number(Fraction(1, 2) + 2 * bound.eta)) == -1
    assert bound.claim(context.mpf("0.500001")) == 0
    assert bound.claim(context.mpf(0)) == -1
    assert bound.claim(number(bound.eta)) == -1


def test_claim_is_closed_and_strictly_inside_the_radius():
    bound = SmoothingBound(Fraction(5), Fraction(3), 1, Fraction(0))  # tau = 4, no error: R = 4 Phi^-1(p)
    just_one = normal_cdf(context.mpf(0.25))
    assert bound.claim(just_one + context.mpf(2) ** -200) == 1
    assert bound.claim(just_one - context.mpf(2) ** -200) == 0


@pytest.mark.parametrize(
    ("radius", "square"), [("0", 0), ("0.5", 16_256), ("0.25", 4064), ("1", 65_025), ("0.0039", 0), ("0.003922", 1)]
)
def test_squared_steps(radius, square):
    assert squared_steps(radius) == square
    assert squared_steps(Fraction(radius)) == square


def test_certified_at_is_exact_where_the_display_is_not():
    assert radius_string(16_256) == "0.499996"
    assert certified_at(16_256, "0.5")
    assert not certified_at(16_255, "0.5")
    assert certified_at(0, "0")
    assert not certified_at(-1, "0")


@pytest.mark.parametrize("radius", ["", "-1", "half", "1e-1"])
def test_radius_that_is_no_decimal_is_refused(radius):
    with pytest.raises(CertificateError, match="is not a plain decimal"):
        certified_at(5, radius)


@given(st.integers(0, 10**8))
def test_radius_string_is_the_square_root_rounded_down(m):
    text = radius_string(m)
    shown = Fraction(text)
    assert len(text.partition(".")[2]) == 6
    assert (255 * shown) ** 2 <= m < (255 * (shown + Fraction(1, 10**6))) ** 2


def test_radius_string_of_an_abstention():
    assert radius_string(-1) == "0.000000"
