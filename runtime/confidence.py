"""Exact binomial confidence bounds and tests on class counts.

Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial", Biometrika,
1934. Float64 finds the bounds; where a decision is too close for it, ``lower_bound_exceeds`` settles it to 200 bits.
"""

from fractions import Fraction

import mpmath
import numpy as np
from scipy import special, stats

from intcert.runtime.decimals import parse_decimal
from intcert.runtime.errors import CertificateError
from intcert.runtime.high_precision import context, number
from intcert.runtime.smoothing import ABSTAIN

# Bound on the relative error of ``lower_bounds``, at least 100 times what tests/runtime/test_confidence.py measures.
RELATIVE_ERROR = 1e-11

_SERIES_BITS = 256


def parse_alpha(text: str) -> Fraction:
    """A failure probability from its exact decimal string.

    Raises:
        CertificateError: not a plain decimal, or not strictly between 0 and 1/2.
    """
    alpha = parse_decimal(text)
    if alpha is None or not 0 < alpha < Fraction(1, 2):
        raise CertificateError(f"alpha {text!r} is not a plain decimal between 0 and 0.5; give one like 0.001")
    return alpha


def lower_bounds(counts: np.ndarray, n: int, alpha: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """One-sided Clopper-Pearson lower bounds p at level 1 - ``alpha`` for ``counts`` successes of ``n``.

    ``counts``: integers in 1..n. Returns p and 1 - p as float64; the smaller of the two has the relative error
    ``RELATIVE_ERROR`` at most.
    """
    counts = np.asarray(counts, dtype=np.float64)
    failures, level = n - counts, float(alpha)
    # P[Bin(n, p) >= c] = I_p(c, n - c + 1) = alpha, solved for whichever of p and 1 - p is small.
    p = special.betaincinv(counts, failures + 1, level)
    high = p > 0.5
    small = np.where(high, special.betainccinv(failures + 1, counts, level), p)
    # scipy stops its root search at up to 1e-10; one Newton step on its far more exact I_p repairs that.
    excess = np.where(
        high,
        special.betaincc(failures + 1, counts, small) - level,
        level - special.betainc(counts, failures + 1, small),
    )
    own, other = np.where(high, failures, counts - 1), np.where(high, counts - 1, failures)
    log_density = (
        special.gammaln(n + 1.0)
        - special.gammaln(counts)
        - special.gammaln(failures + 1)
        + special.xlogy(own, small)
        + special.xlog1py(other, -small)
    )
    small = small + excess * np.exp(-log_density)
    return np.where(high, 1 - small, small), np.where(high, small, 1 - small)


def lower_bound_exceeds(count: int, n: int, alpha: Fraction, probability: mpmath.mpf) -> bool:
    """Whether the Clopper-Pearson lower bound of ``count`` of ``n`` at level 1 - alpha is above ``probability``.

    The bound p solves P[Bin(n, p) >= count] = alpha and that tail grows in p, so no root is needed.
    """
    return upper_tail(count, n, probability) < number(alpha)


def upper_tail(count: int, n: int, probability: mpmath.mpf) -> mpmath.mpf:
    """P[Bin(n, probability) >= count] to over 200 bits, for 0 < probability < 1 and 0 <= count <= n."""
    log_first = (
        context.loggamma(n + 1)
        - context.loggamma(count + 1)
        - context.loggamma(n - count + 1)
        + count * context.log(probability)
        + (n - count) * context.log1p(-probability)
    )
    # The terms relative to the first, in fixed point: each is the last times (n - j) / (j + 1) * p / (1 - p).
    one = 1 << _SERIES_BITS
    odds = int(context.ldexp(probability / (1 - probability), _SERIES_BITS))
    term = total = one
    j = count
    while term:
        term = term * (n - j) * odds // ((j + 1) << _SERIES_BITS)
        total += term
        j += 1
    return context.exp(log_first) * total / one


def predicted_class(counts: np.ndarray, alpha: str) -> int:
    """Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, PREDICT.

    The class with the largest of ``counts`` (integers[classes]) if a two-sided binomial test rejects, at level
    ``alpha``, that the two leading classes are equally probable; else -1.

    Raises:
        CertificateError: ``alpha`` is no probability below 1/2, or nothing was counted.
    """
    level = parse_alpha(alpha)
    leader = int(np.argmax(counts))
    first = int(counts[leader])
    second = max((int(count) for label, count in enumerate(counts) if label != leader), default=0)
    if first <= 0:
        raise CertificateError("no sample was counted, so no class can be predicted; draw at least one")
    p_value = stats.binomtest(first, first + second, 0.5).pvalue
    return leader if p_value <= float(level) else ABSTAIN
