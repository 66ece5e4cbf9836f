"""What a class probability certifies: the radius proven for discrete Gaussian noise on the pixel grid.

docs/certificate.md states the theorem and proves it; names and formulas here are the ones used there. All lengths are
in pixel steps (1/255 of the [0, 1] scale) unless a name says otherwise.
"""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import mpmath

from intcert.runtime.decimals import parse_decimal
from intcert.runtime.errors import CertificateError, SigmaError
from intcert.runtime.high_precision import context, normal_cdf, normal_quantile, number
from intcert.runtime.noise import PIXEL_STEPS, NoiseLaw

ABSTAIN = -1

_ETA_BITS = 128
_KERNEL_BUDGET = Fraction(1, 1 << 40)
_RADIUS_DECIMALS = 6


@dataclass(frozen=True)
class SmoothingBound:
    """Robustness of a smoothed classifier on Z^d under discrete Gaussian noise, with every error term included.

    Guarantee: if the class has probability at least p under the drawn noise at an image x, it is the most probable
    class at x + delta for every integer delta with ``|delta|_2 < radius(p)``.

    Attributes:
        sigma: noise level.
        width: s, 0 < s < sigma: the part of the noise that makes the smoothed classifier a function on R^d.
        dimension: d, the number of coordinates of an image.
        eta: bound on the difference of any event's probability between the drawn noise and the law for which
            the continuous theorem holds; eta_K + eta_S.
    """

    sigma: Fraction
    width: Fraction
    dimension: int
    eta: Fraction

    @functools.cached_property
    def tau(self) -> mpmath.mpf:
        """sqrt(sigma^2 - s^2): the noise level of the continuous theorem."""
        return context.sqrt(number(self.sigma**2 - self.width**2))

    @functools.cached_property
    def half(self) -> mpmath.mpf:
        """Phi^-1(1/2 + eta), what a probability of one half costs at the far end."""
        return normal_quantile(number(Fraction(1, 2) + self.eta))

    def radius(self, p: mpmath.mpf) -> mpmath.mpf:
        """R = tau (Phi^-1(p - eta) - Phi^-1(1/2 + eta)) for a lower bound p; nothing is certified unless R > 0."""
        return self.tau * (normal_quantile(p - number(self.eta)) - self.half)

    def two_class_radius(self, p: mpmath.mpf, q: mpmath.mpf) -> mpmath.mpf:
        """R = tau ((a - b) / 2 - u) for a lower bound p of the class and an upper bound q of every other.

        Nothing is certified unless R > 0, that is unless p - q > 4 eta.
        """
        eta = number(self.eta)
        a, b = normal_quantile(p - eta), normal_quantile(q + eta)
        if not (context.isfinite(a) and context.isfinite(b)):
            return -context.inf
        return self.tau * ((a - b) / 2 - self._two_class_loss((a + b) / 2))

    def threshold(self, m: int) -> mpmath.mpf:
        """P_m = eta + Phi(sqrt(m) / tau + Phi^-1(1/2 + eta)): p claims m or more if and only if p > P_m."""
        return number(self.eta) + normal_cdf(context.sqrt(m) / self.tau + self.half)

    def claim(self, p: mpmath.mpf) -> int:
        """m = ceil(R^2) - 1, so that the class holds on the closed ball |delta|^2 <= m; -1 where R <= 0."""
        radius = self.radius(p)
        return int(context.ceil(radius**2)) - 1 if radius > 0 else ABSTAIN

    def _two_class_loss(self, middle: mpmath.mpf) -> mpmath.mpf:
        """Least u >= 0 with Phi(M + u) - Phi(M - u) >= 2 eta, rounded up."""
        target = 2 * number(self.eta)
        low, high = context.mpf(0), context.mpf(1)
        while normal_cdf(middle + high) - normal_cdf(middle - high) < target:
            high *= 2
        for _ in range(context.prec):
            u = (low + high) / 2
            if normal_cdf(middle + u) - normal_cdf(middle - u) < target:
                low = u
            else:
                high = u
        return high


def smoothing_bound(law: NoiseLaw, dimension: int) -> SmoothingBound:
    """The bound for noise drawn from ``law`` on images of ``dimension`` coordinates.

    Raises:
        SigmaError: the noise is too small for this dimension.
    """
    width = smoothing_width(law.sigma_steps, dimension)
    eta = kernel_distance(law.sigma_steps, width, dimension) + sampler_distance(law.tv, dimension)
    return SmoothingBound(law.sigma_steps, width, dimension, eta)


def smoothing_width(sigma: Fraction, dimension: int) -> Fraction:
    """s: the least multiple of 1/100 with d eps0(s) <= 2^-40.

    Raises:
        SigmaError: it is not below ``sigma``.
    """
    budget = number(_KERNEL_BUDGET / dimension)
    hundredths = 50  # eps0(1/2) is above 1 %
    while _theta_excess(Fraction(hundredths, 100) ** 2) > budget:
        hundredths += 1
    width = Fraction(hundredths, 100)
    if width >= sigma:
        raise SigmaError(
            f"sigma {float(sigma / PIXEL_STEPS):.6g} is {float(sigma):.6g} pixel steps, too little to certify images "
            f"of {dimension} coordinates; give more than {float(width / PIXEL_STEPS):.6f}"
        )
    return width


def kernel_distance(sigma: Fraction, width: Fraction, dimension: int) -> Fraction:
    """eta_K = 1 - (1 - e01)^d, e01 = 2 sum_{k >= 1} exp(-2 pi^2 s^2 k^2 (1 + tau^2 / sigma^2)), rounded up.

    A multiple of 2^-128. docs/certificate.md proves this bound and the simpler (1 + eps0)^d - 1, which is larger.
    """
    excess = _theta_excess(width**2 * (2 - width**2 / sigma**2))
    if excess >= 1:
        return Fraction(1)
    units = context.ldexp(-context.expm1(dimension * context.log1p(-excess)), _ETA_BITS)
    # One unit on top covers what 256-bit arithmetic rounds away.
    return min(Fraction(1), Fraction(int(context.ceil(units)) + 1, 1 << _ETA_BITS))


def sampler_distance(tv: Fraction, dimension: int) -> Fraction:
    """eta_S = 1 - (1 - t)^d <= d t (Bernoulli): total variation of d independent draws, each within ``tv``."""
    return dimension * tv


def squared_steps(radius: str | Fraction) -> int:
    """floor((255 r)^2) for a radius r on the [0, 1] scale: the largest |delta|^2 of an integer delta within r.

    Raises:
        CertificateError: ``radius`` is a string that is not a plain decimal.
    """
    value = parse_decimal(radius) if isinstance(radius, str) else radius
    if value is None:
        raise CertificateError(f"radius {radius!r} is not a plain decimal; give it on the [0, 1] scale, like 0.5")
    return math.floor((PIXEL_STEPS * value) ** 2)


def certified_at(m: int, radius: str | Fraction) -> bool:
    """Whether the claim ``m`` covers every integer perturbation within ``radius`` on the [0, 1] scale.

    Raises:
        CertificateError: as ``squared_steps``.
    """
    return m >= squared_steps(radius)


def radius_string(m: int) -> str:
    """sqrt(m) / 255, the certified radius on the [0, 1] scale, rounded down to 6 decimals; 0 for an abstention.

    For display only: comparing it with a radius loses images that ``certified_at`` counts.
    """
    unit = 10**_RADIUS_DECIMALS
    scaled = math.isqrt(max(m, 0) * unit**2 // PIXEL_STEPS**2)
    return f"{scaled // unit}.{scaled % unit:0{_RADIUS_DECIMALS}d}"


def _theta_excess(variance: Fraction) -> mpmath.mpf:
    """2 sum_{k >= 1} exp(-2 pi^2 v k^2): how far sums of a Gaussian of variance v over Z stray from its integral."""
    rate = -2 * context.pi**2 * number(variance)
    total, k = context.mpf(0), 1
    while (term := context.exp(rate * k * k)) > context.eps**2:
        total += term
        k += 1
    return 2 * total
