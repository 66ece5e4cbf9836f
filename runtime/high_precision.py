"""The normal distribution to 256 bits, where float64 cannot tell on which side of an integer a certificate falls."""

from fractions import Fraction

import mpmath

PRECISION = 256

# A context of its own: mpmath's default one is global state that any caller may change.
context = mpmath.mp.clone()
context.prec = PRECISION


def number(value: Fraction | int) -> mpmath.mpf:
    """A fraction or an integer of any size as a 256-bit number."""
    value = Fraction(value)
    return context.mpf(value.numerator) / value.denominator


def normal_cdf(z: mpmath.mpf) -> mpmath.mpf:
    """Phi(z)."""
    return context.ncdf(z)


def normal_quantile(p: mpmath.mpf) -> mpmath.mpf:
    """Phi^-1(p); minus or plus infinity where p is not inside (0, 1)."""
    if p <= 0:
        return -context.inf
    if p >= 1:
        return context.inf
    return context.sqrt(2) * context.erfinv(2 * p - 1)
