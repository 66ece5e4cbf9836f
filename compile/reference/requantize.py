"""Both requantization schemes in NumPy, as docs/arithmetic.md states them: int64 throughout, shifts are floors."""

from __future__ import annotations

import numpy as np

from intcert.compile.nodes import Clamp, LogitScale, Requant, RequantQ15


def requantize(requant: Requant, clamp: Clamp, accumulator: np.ndarray | None, terms: list[np.ndarray]) -> np.ndarray:
    """One requantization.

    accumulator: int64[..., C] with its bias added and its input scale applied, or None; terms: int8 or uint8 [..., C].
    Returns clamp.dtype[..., C].
    """
    scheme = _q15 if isinstance(requant, RequantQ15) else _q31
    exact = scheme(requant, accumulator, terms)
    return np.clip(exact, clamp.lo, clamp.hi).astype(clamp.dtype)


def _high_multiply(value: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    """(value * multiplier + 2**14) >> 15, the rounding 16-bit high multiply of vpmulhrsw and sqrdmulh."""
    return (value * multiplier.astype(np.int64) + 2**14) >> 15


def _q15(requant: RequantQ15, accumulator: np.ndarray | None, terms: list[np.ndarray]) -> np.ndarray:
    total = np.int64(0)
    if accumulator is not None:
        shifted = np.clip(accumulator >> requant.shift.astype(np.int64), -(2**15), 2**15 - 1)
        total = _high_multiply(shifted, requant.multiplier)
    if not terms:
        return total
    for term, multiplier in zip(terms, requant.term_multipliers, strict=True):
        total = total + _high_multiply(term.astype(np.int64) << 7, multiplier)
    return (total + requant.offset) >> 3


def _q31(requant: Requant, accumulator: np.ndarray | None, terms: list[np.ndarray]) -> np.ndarray:
    total = requant.rounding
    if accumulator is not None:
        total = total + accumulator * requant.multiplier.astype(np.int64)
    for term, multiplier in zip(terms, requant.term_multipliers, strict=True):
        total = total + (term.astype(np.int64) << 8) * multiplier.astype(np.int64)
    return total >> requant.shift.astype(np.int64)


def scale_logits(scale: LogitScale, accumulator: np.ndarray) -> np.ndarray:
    """int32[..., C]: ``(acc * multiplier + rounding) >> 30``."""
    return ((accumulator * scale.multiplier.astype(np.int64) + scale.rounding) >> 30).astype(np.int32)
