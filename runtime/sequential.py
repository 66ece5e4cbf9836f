"""A sequential test that certifies one fixed radius with as few samples as the image needs.

The Krichevsky-Trofimov mixture (Krichevsky and Trofimov, "The Performance of Universal Encoding", 1981) divided by the
likelihood of a success probability p0 is a martingale at p0 itself, and Ville's inequality bounds the chance that it
ever reaches 1/alpha. docs/certificate.md proves why comparing counts with the thresholds below is sound for every
probability up to p0, which comparing the mixture itself is not.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
from scipy import special

from intcert.runtime.high_precision import context, number

_FIRST_CHECKS = (64, 128)
_CHECK_INTERVAL = 256


def check_points(n: int) -> list[int]:
    """The sample counts at which the test looks: 64, 128, 256, then multiples of 256, and at last ``n`` itself."""
    schedule = [k for k in _FIRST_CHECKS if k < n]
    schedule += range(_CHECK_INTERVAL, n, _CHECK_INTERVAL)
    return [*schedule, n]


def log_mixture(k: int, count: int, p0: Fraction) -> mpmath.mpf:
    """log E_k(c), E_k(c) = B(c + 1/2, k - c + 1/2) / (B(1/2, 1/2) p0^c (1 - p0)^(k - c))."""
    half = context.mpf(0.5)
    return (
        context.loggamma(count + half)
        + context.loggamma(k - count + half)
        - context.loggamma(k + 1)
        - context.log(context.pi)
        - count * context.log(number(p0))
        - (k - count) * context.log(number(1 - p0))
    )


def accept_thresholds(points: list[int], p0: Fraction, alpha: Fraction) -> list[int]:
    """u_k = least count c >= p0 k with E_k(c) >= 1/alpha, or k + 1 where there is none, for each k of ``points``."""
    evidence = -context.log(number(alpha))
    lowest = [math.ceil(p0 * k) for k in points]
    highest = [k + 1 for k in points]
    guesses = _bisect(lowest, highest, lambda c: _float_log_mixture(np.array(points), c, p0) >= float(evidence))
    thresholds = []
    for k, low, guess in zip(points, lowest, guesses, strict=True):
        # From p0 k upwards E_k grows, so the exact threshold is next to the one found in float64.
        threshold = guess
        while threshold > low and log_mixture(k, threshold - 1, p0) >= evidence:
            threshold -= 1
        while threshold <= k and log_mixture(k, threshold, p0) < evidence:
            threshold += 1
        thresholds.append(threshold)
    return thresholds


def reject_thresholds(points: list[int], p0: Fraction, beta: Fraction) -> list[int]:
    """The largest count c < p0 k with E_k(c) >= 1/beta, or -1 where there is none, for each k of ``points``.

    At such a count the test gives up: going on would most likely be in vain.
    """
    evidence = -context.log(number(beta))
    highest = [math.ceil(p0 * k) for k in points]
    lowest = [0] * len(points)
    guesses = _bisect(lowest, highest, lambda c: _float_log_mixture(np.array(points), c, p0) < float(evidence))
    thresholds = []
    for k, high, guess in zip(points, highest, guesses, strict=True):
        # Below p0 k E_k falls.
        threshold = guess - 1
        while threshold >= 0 and log_mixture(k, threshold, p0) < evidence:
            threshold -= 1
        while threshold + 1 < high and log_mixture(k, threshold + 1, p0) >= evidence:
            threshold += 1
        thresholds.append(threshold)
    return thresholds


def _float_log_mixture(points: np.ndarray, counts: np.ndarray, p0: Fraction) -> np.ndarray:
    failures = points - counts
    return (
        special.betaln(counts + 0.5, failures + 0.5)
        - math.log(math.pi)
        - counts * math.log(p0)
        - failures * math.log(1 - p0)
    )


def _bisect(lowest: list[int], highest: list[int], holds: Callable[[np.ndarray], np.ndarray]) -> list[int]:
    """For each element the least c in [lowest, highest) from which ``holds`` is true, or ``highest``."""
    low, high = np.array(lowest), np.array(highest)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        true = holds(middle)
        high = np.where(open_ & true, middle, high)
        low = np.where(open_ & ~true, middle + 1, low)
    return [int(c) for c in low]
