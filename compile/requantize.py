"""From real scales to the integers of docs/arithmetic.md: both requantization schemes and the scaled logits.

Every float that a program stores (scales, biases, normalisation constants) is a dyadic rational; the functions here
compute on exact ``Fraction`` values of them and round once, ``round(x) = floor(x + 1/2)``. Nothing depends on the
machine's floating point.

Derivation. An accumulator step of channel c is worth ``unit_c`` and a stored term is worth ``scale_j (a_j - zero_j)``.
With ``real_c = unit_c / scale_out`` and ``ratio_j = scale_j / scale_out`` the sum to be rounded is, in output steps,

    y = real_c acc + sum_j ratio_j a_j + k_c,    k_c = offset_c / scale_out + zero_out - sum_j ratio_j zero_j,

where acc already holds the integer correction ``-zero_in sum(w)`` that makes up for the input's zero point.

q31 multiplies by 2**shift and rounds each coefficient once: ``k_c`` becomes ``rounding - 2**(shift - 1)``.
q15 has no room for a wide constant beside a 16-bit product, so k_c moves in front of it: the bias ``k_c / real_c``
joins the accumulator. Without an accumulator it becomes ``offset``, in eighths of an output step.
With terms q15 rounds twice, first to eighths and then to steps: floor((floor(8 y + 1/2) + 4) / 8) is
floor(y + 1/2 + 1/16), so the bias gives 1/16 of an output step back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from intcert.compile.nodes import LogitScale, Range, RequantQ15, RequantQ31, require
from intcert.runtime.errors import ModelError

#: Bits behind the binary point of q31's stored terms, pixels and pooling sums, and of q15's pixels.
Q31_BITS = 8
Q15_INPUT_BITS = 4

#: Where an accumulator comes from: products with weights, pixels + noise, or the sum of a pooling bin.
Source = Literal["weights", "pixels", "pool"]


@dataclass(frozen=True)
class Quantization:
    """Affine 8-bit code: the integer a stands for ``scale * (a - zero_point)``, and a lies within ``range``."""

    scale: Fraction
    zero_point: int
    range: Range

    @property
    def reach(self) -> int:
        """Greatest |a|."""
        return max(-self.range[0], self.range[1])


@dataclass(frozen=True)
class Accumulator:
    """What an int32 accumulator means, for each of its C channels.

    unit: real value of one step; offset: real constant to be added (a convolution's bias); correction: int64[C], the
    integer that makes up for the input's zero point; reach: int64[C], bound of |acc| before the correction.
    """

    unit: Sequence[Fraction]
    offset: Sequence[Fraction]
    correction: np.ndarray
    reach: np.ndarray

    def scaled(self, bits: int) -> Accumulator:
        """The accumulator shifted left by ``bits``, correction included: finer steps of the same value."""
        return Accumulator(
            [unit / 2**bits for unit in self.unit], self.offset, self.correction << bits, self.reach << bits
        )


def round_half_up(value: Fraction) -> int:
    """floor(value + 1/2)."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def _round_shifted(value: Fraction, bits: int) -> int:
    """round(value * 2**bits), without normalising a new Fraction."""
    numerator, denominator = value.numerator, value.denominator
    if bits >= 0:
        numerator <<= bits
    else:
        denominator <<= -bits
    return (2 * numerator + denominator) // (2 * denominator)


def weighted_accumulator(
    weight: np.ndarray, weight_scale: np.ndarray, bias: np.ndarray | None, source: Quantization
) -> Accumulator:
    """Accumulator of a convolution or linear layer.

    weight: int8[O, ...]; weight_scale: float[O]; bias: float[O] or None; source: code of the input, its range including
    the padding. A channel without any weight has no scale of its own and takes the layer's largest.
    """
    rows = weight.astype(np.int64).reshape(len(weight), -1)
    scales = np.where(rows.any(axis=1), weight_scale, weight_scale.max())
    return Accumulator(
        [source.scale * Fraction(float(scale)) for scale in scales],
        [Fraction(0)] * len(weight) if bias is None else [Fraction(float(value)) for value in bias],
        -source.zero_point * rows.sum(axis=1),
        np.abs(rows).sum(axis=1) * source.reach,
    )


def _int32(name: str, values: Sequence[int]) -> np.ndarray:
    worst = max(values, key=abs, default=0)
    require(
        abs(worst) < 2**31,
        f"{name} of channel {list(values).index(worst) if values else 0} is {worst}, beyond 32 bits: the scale of that "
        "channel is too small for its bias; quantize again with a larger least scale (eps)",
    )
    return np.array(values, dtype=np.int32)


def _constant(terms: Sequence[Quantization], output: Quantization) -> Fraction:
    """Part of k that is the same in all channels, in output steps."""
    return output.zero_point - sum((t.scale * t.zero_point for t in terms), Fraction(0)) / output.scale


def requantize(
    scheme: str,
    accumulator: Accumulator | None,
    terms: Sequence[Quantization],
    output: Quantization,
    source: Source = "weights",
) -> tuple[np.ndarray, RequantQ15 | RequantQ31]:
    """Bias int32[C] to be added to the accumulator, and the requantization of ``accumulator + terms`` to ``output``.

    scheme: "q15" or "q31"; without an accumulator the bias is empty. Raises ModelError where the scheme cannot hold the
    scales.
    """
    construct = _requantize_q15 if scheme == "q15" else _requantize_q31
    return construct(accumulator, terms, output, source)


def _requantize_q15(
    accumulator: Accumulator | None, terms: Sequence[Quantization], output: Quantization, source: Source
) -> tuple[np.ndarray, RequantQ15]:
    constant = _constant(terms, output)
    multipliers = np.array([_term_q15(term, output) for term in terms], dtype=np.int16)
    if accumulator is None:
        return np.zeros(0, np.int32), RequantQ15(
            np.zeros(0, np.int16), np.zeros(0, np.int8), multipliers, 4 + _round_shifted(constant, 3)
        )
    # Three guard bits beside residual terms; a saturated 16-bit accumulator must stay beyond every stored value.
    bits, least, most = (18, 2**13, 16383) if terms else (15, 2**11, 32767)
    last_shift = 30
    if source == "pixels":
        accumulator, least, last_shift = accumulator.scaled(Q15_INPUT_BITS), 257, 0
    twice_rounded = Fraction(1, 16) if terms else Fraction(0)
    shifts, factors, biases = [], [], []
    for c, (unit, offset, correction) in enumerate(
        zip(accumulator.unit, accumulator.offset, accumulator.correction.tolist(), strict=True)
    ):
        real = unit / output.scale
        shift = _least_shift(real, bits, least, last_shift)
        factor = _round_shifted(real, bits + shift)
        require(
            least <= factor <= most,
            f"q15 cannot scale channel {c} by {float(real):.3g}; use scheme q31",
        )
        shifts.append(shift)
        factors.append(factor)
        steps = (offset / output.scale + constant - twice_rounded) / real
        biases.append(round_half_up(steps) + correction + (1 << shift >> 1))
    bias = _int32("q15 bias", biases)
    return bias, RequantQ15(np.array(factors, np.int16), np.array(shifts, np.int8), multipliers)


def _least_shift(real: Fraction, bits: int, least: int, last: int) -> int:
    """Least shift in 0..last with round(real * 2**(bits + shift)) >= least; ``last`` where there is none."""
    if real <= 0:
        return last
    # Two below where the leading bits would meet: never too far.
    guess = least.bit_length() - bits - real.numerator.bit_length() + real.denominator.bit_length() - 2
    shift = min(max(guess, 0), last)
    while shift < last and _round_shifted(real, bits + shift) < least:
        shift += 1
    return shift


def _term_q15(term: Quantization, output: Quantization) -> int:
    ratio = term.scale / output.scale
    multiplier = _round_shifted(ratio, 11)
    require(0 < multiplier <= 32767, f"q15 cannot scale a residual term by {float(ratio):.3g}; use scheme q31")
    return multiplier


def _requantize_q31(
    accumulator: Accumulator | None, terms: Sequence[Quantization], output: Quantization, source: Source
) -> tuple[np.ndarray, RequantQ31]:
    ratios = [term.scale / output.scale / 2**Q31_BITS for term in terms]
    reaches = [term.reach << Q31_BITS for term in terms]
    constant = _constant(terms, output)
    if accumulator is None:
        shift, factors, rounding = _widest_q31(ratios, reaches, constant, 0)
        return np.zeros(0, np.int32), RequantQ31(
            np.zeros(0, np.int32),
            np.array(factors, np.int32).reshape(-1, 1),
            np.array([rounding], np.int64),
            np.array([shift], np.int8),
        )
    bias = _int32("zero-point correction", accumulator.correction.tolist())
    if source != "weights":
        accumulator = accumulator.scaled(Q31_BITS)
    found = [
        _widest_q31([unit / output.scale, *ratios], [reach, *reaches], offset / output.scale + constant, c)
        for c, (unit, offset, reach) in enumerate(
            zip(
                accumulator.unit,
                accumulator.offset,
                (accumulator.reach + np.abs(accumulator.correction)).tolist(),
                strict=True,
            )
        )
    ]
    shifts, factors, rounding = zip(*found, strict=True)
    table = np.array(factors, np.int32).T
    return bias, RequantQ31(table[0].copy(), table[1:].copy(), np.array(rounding, np.int64), np.array(shifts, np.int8))


def _widest_q31(
    reals: Sequence[Fraction], reaches: Sequence[int], constant: Fraction, channel: int
) -> tuple[int, list[int], int]:
    """Greatest shift in 32..62, its multipliers and its rounding, for ``sum(real * value) + constant``."""
    largest = max(map(abs, reals))
    # One above where the largest multiplier has 31 bits: never too small.
    shift = min(62, 32 - largest.numerator.bit_length() + largest.denominator.bit_length()) if largest else 62
    while shift >= 32:
        factors = [_round_shifted(real, shift) for real in reals]
        rounding = _round_shifted(constant, shift) + (1 << (shift - 1))
        total = sum(abs(f) * reach for f, reach in zip(factors, reaches, strict=True)) + abs(rounding)
        if max(map(abs, factors)) < 2**31 and total < 2**63:
            return shift, factors, rounding
        shift -= 1
    raise ModelError(
        f"no 64-bit requantization scales channel {channel} by {float(largest):.3g}: its output scale is too fine; "
        "calibrate with real images, or remove the layer if it is always 0"
    )


def scale_logits(accumulator: Accumulator) -> tuple[np.ndarray, LogitScale]:
    """Bias int32[C] (the zero-point correction alone) and the LogitScale of a float output.

    Logits are integers in steps of the largest unit. Raises ModelError where a bias is beyond them.
    """
    largest = max(accumulator.unit)
    multiplier = [_round_shifted(unit / largest, 30) for unit in accumulator.unit]
    rounding = [_round_shifted(offset / largest, 30) + 2**29 for offset in accumulator.offset]
    worst = max(rounding, key=abs)
    require(abs(worst) < 2**61, f"the bias of logit {rounding.index(worst)} is beyond 31 bits of accumulator steps")
    bias = _int32("zero-point correction", accumulator.correction.tolist())
    return bias, LogitScale(np.array(multiplier, np.int32), np.array(rounding, np.int64))
