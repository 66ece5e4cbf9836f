"""The constructed integers against exact rational arithmetic, within bounds that follow from their definition.

Every bound here is proven in a comment, none is a tolerance found by trying: y is the exact sum in output steps, and
the executed result must lie between clip(floor(y + 1/2 - E)) and clip(floor(y + 1/2 + E)).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intcert.compile.nodes import Clamp, RequantQ15
from intcert.compile.reference.requantize import requantize as execute
from intcert.compile.reference.requantize import scale_logits as execute_logits
from intcert.compile.requantize import (
    Accumulator,
    Quantization,
    requantize,
    round_half_up,
    scale_logits,
    weighted_accumulator,
)
from intcert.runtime.errors import ModelError

SCHEMES = ("q15", "q31")
CLAMPS = {"uint8": Clamp("uint8", 0, 255), "int8": Clamp("int8", -127, 127)}

dtypes = st.sampled_from(["uint8", "int8"])


def code(scale: float, zero_point: int, dtype: str) -> Quantization:
    clamp = CLAMPS[dtype]
    return Quantization(Fraction(float(np.float32(scale))), zero_point, (clamp.lo, clamp.hi))


@st.composite
def codes(draw, zero_points: bool = True) -> tuple[Quantization, str]:
    dtype = draw(dtypes)
    clamp = CLAMPS[dtype]
    zero = draw(st.integers(clamp.lo, clamp.hi)) if zero_points and draw(st.booleans()) else 0
    return code(2.0 ** draw(st.floats(-8, 1)), zero, dtype), dtype


@dataclass(frozen=True)
class Sum:
    """A residual sum: operands, where they come from, and the scales that give them meaning."""

    source: Quantization
    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray | None
    inputs: np.ndarray
    terms: list[Quantization]
    term_values: np.ndarray
    output: Quantization
    clamp: Clamp

    def exact(self, channel: int, sample: int) -> Fraction:
        """The sum in output steps, by its definition on real numbers."""
        real = sum(
            int(w) * (int(a) - self.source.zero_point)
            for w, a in zip(self.weight[channel], self.inputs[sample], strict=True)
        ) * (self.source.scale * Fraction(float(self.weight_scale[channel])))
        real += Fraction(float(self.bias[channel])) if self.bias is not None else 0
        for term, value in zip(self.terms, self.term_values[:, sample, channel], strict=True):
            real += term.scale * (int(value) - term.zero_point)
        return real / self.output.scale + self.output.zero_point


@st.composite
def sums(draw) -> Sum:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels, length, samples = draw(st.integers(1, 4)), draw(st.integers(1, 40)), 16
    source, _ = draw(codes())
    output, dtype = draw(codes())
    # Ratios that q15 can hold: together at most 767 steps beside an accumulator.
    ratios = draw(st.lists(st.floats(0.01, 0.95), max_size=3))
    kinds = [draw(dtypes) for _ in ratios]
    zeros = [draw(st.integers(CLAMPS[kind].lo, CLAMPS[kind].hi)) for kind in kinds]
    terms = [code(float(output.scale) * r, zero, kind) for r, zero, kind in zip(ratios, zeros, kinds, strict=True)]
    real = 2.0 ** draw(st.floats(-18, -4.1))
    scale = real * float(output.scale) / float(source.scale) * rng.uniform(0.3, 1, channels)
    bias = rng.normal(0, 50 * float(output.scale), channels) if draw(st.booleans()) else None
    return Sum(
        source,
        rng.integers(-127, 128, (channels, length)).astype(np.int8),
        scale.astype(np.float32),
        None if bias is None else bias.astype(np.float32),
        rng.integers(source.range[0], source.range[1] + 1, (samples, length)),
        terms,
        np.array([rng.integers(t.range[0], t.range[1] + 1, (samples, channels)) for t in terms]).reshape(
            len(terms), samples, channels
        ),
        output,
        CLAMPS[dtype],
    )


def assert_within(result: int, y: Fraction, error: Fraction, clamp: Clamp) -> None:
    low, high = (floor(y + Fraction(1, 2) + sign * error) for sign in (-1, 1))
    assert min(max(low, clamp.lo), clamp.hi) <= result <= min(max(high, clamp.lo), clamp.hi)


def q31_error(requant, channel: int, operands: list[int]) -> Fraction:
    """Each multiplier and the constant are rounded once, by at most 1/2, before the shift."""
    return Fraction(sum(map(abs, operands)) + 1, 2 ** (int(requant.shift[channel]) + 1))


def q15_error(
    requant: RequantQ15, channel: int, acc: int, real: Fraction, terms: list[int]
) -> tuple[Fraction, Fraction]:
    """Error E of q15 and the shift of its centre, in output steps; acc holds the bias.

    The bias is rounded by 1/2 and the right shift by another 1/2, which is (1/2 / 2**shift + 1/2) steps of the shifted
    value (1/2 for shift 0), each worth real * 2**shift. The multiplier is off by 1/2 in 2**15 (2**18 with guard bits).
    With terms, every product is rounded to an eighth: 1/2 an eighth each. A term's multiplier is off by 1/2 in 2**11.
    The accumulator's bias gives back 1/16, the mean error of rounding twice.
    """
    guard = 8 if terms else 1
    shift = int(requant.shift[channel])
    shifted = acc >> shift
    steps = Fraction(1, 2 * 2**shift) + (Fraction(1, 2) if shift else 0)
    error = steps * real * 2**shift + Fraction(abs(shifted), 2**16 * guard)
    if not terms:
        return error, Fraction(0)
    error += Fraction(1 + len(terms), 16) + sum(Fraction(abs(a), 2**12) for a in terms)
    return error, -Fraction(1, 16)


@given(sums())
@settings(max_examples=150, deadline=None)
def test_q31_differs_from_exact_rounding_by_the_rounding_of_its_multipliers(s: Sum):
    accumulator = weighted_accumulator(s.weight, s.weight_scale, s.bias, s.source)
    bias, requant = requantize("q31", accumulator, s.terms, s.output)
    acc = s.inputs @ s.weight.astype(np.int64).T + bias
    assert (np.abs(acc) <= accumulator.reach + np.abs(bias)).all()
    result = execute(requant, s.clamp, acc, list(s.term_values))
    for sample, channel in np.ndindex(result.shape):
        operands = [int(acc[sample, channel]), *(int(a) << 8 for a in s.term_values[:, sample, channel])]
        error = q31_error(requant, channel, operands)
        assert error < Fraction(1, 2)  # so q31 is never more than one step from exact rounding
        assert_within(int(result[sample, channel]), s.exact(channel, sample), error, s.clamp)


@given(sums())
@settings(max_examples=150, deadline=None)
def test_q15_differs_from_exact_rounding_by_its_16_bits(s: Sum):
    accumulator = weighted_accumulator(s.weight, s.weight_scale, s.bias, s.source)
    bias, requant = requantize("q15", accumulator, s.terms, s.output)
    requant.check_terms([t.range for t in s.terms])
    acc = s.inputs @ s.weight.astype(np.int64).T + bias
    result = execute(requant, s.clamp, acc, list(s.term_values))
    for sample, channel in np.ndindex(result.shape):
        y = s.exact(channel, sample)
        value, real = int(acc[sample, channel]), accumulator.unit[channel] / s.output.scale
        if not -(2**15) <= value >> int(requant.shift[channel]) < 2**15:
            # A saturated accumulator must leave the result at the end of the clamp, whatever the terms are.
            assert result[sample, channel] == (s.clamp.hi if value > 0 else s.clamp.lo)
            assert y > s.clamp.hi - 1 if value > 0 else y < s.clamp.lo + 1
            continue
        error, centre = q15_error(requant, channel, value, real, [int(a) for a in s.term_values[:, sample, channel]])
        assert_within(int(result[sample, channel]), y + centre, error, s.clamp)


@given(sums().filter(lambda s: s.terms), st.sampled_from(SCHEMES))
@settings(max_examples=150, deadline=None)
def test_sums_of_stored_terms_alone(s: Sum, scheme: str):
    bias, requant = requantize(scheme, None, s.terms, s.output)
    assert len(bias) == requant.channels == 0
    result = execute(requant, s.clamp, None, list(s.term_values))
    for sample, channel in np.ndindex(result.shape):
        values = [int(a) for a in s.term_values[:, sample, channel]]
        y = s.output.zero_point + sum(
            t.scale * (a - t.zero_point) / s.output.scale for t, a in zip(s.terms, values, strict=True)
        )
        if scheme == "q31":
            error = q31_error(requant, 0, [a << 8 for a in values])
        else:  # each product and the constant rounded to an eighth, each multiplier off by 1/2 in 2**11
            error = Fraction(len(values) + 1, 16) + sum(Fraction(abs(a), 2**12) for a in values)
        assert_within(int(result[sample, channel]), y, error, s.clamp)


@given(st.sampled_from(SCHEMES), codes(), st.floats(0.13, 1.5), st.floats(-300, 600), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_pixels(scheme: str, output: tuple[Quantization, str], steps: float, centre: float, seed: int):
    code_out, dtype = output
    clamp = CLAMPS[dtype]
    x = np.random.default_rng(seed).integers(-1020, 1276, (64, 1))
    unit = Fraction(steps) * code_out.scale
    offset = -Fraction(centre) * unit
    accumulator = Accumulator([unit], [offset], np.zeros(1, np.int64), np.array([2**15]))
    bias, requant = requantize(scheme, accumulator, [], code_out, "pixels")
    acc = (x << (4 if scheme == "q15" else 8)) + bias
    result = execute(requant, clamp, acc, [])
    for value, got in zip(x[:, 0].tolist(), result[:, 0].tolist(), strict=True):
        y = (value * unit + offset) / code_out.scale + code_out.zero_point
        if scheme == "q31":
            error = q31_error(requant, 0, [value << 8])
        else:
            error, _ = q15_error(requant, 0, 16 * value + int(bias[0]), Fraction(steps) / 16, [])
        assert_within(got, y, error, clamp)


@given(st.sampled_from(SCHEMES), codes(), st.integers(2, 400), st.floats(0.5, 2), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_pooling_sums(scheme: str, output: tuple[Quantization, str], elements: int, ratio: float, seed: int):
    code_out, dtype = output
    source = code(float(code_out.scale) * ratio, 7, "uint8")
    values = np.random.default_rng(seed).integers(0, 256, (32, elements))
    accumulator = Accumulator(
        [source.scale / elements], [Fraction(0)], np.array([-7 * elements]), np.array([255 * elements])
    )
    if scheme == "q15" and accumulator.unit[0] / code_out.scale > Fraction(32767, 2**15):
        return
    bias, requant = requantize(scheme, accumulator, [], code_out, "pool")
    assert bias.tolist() == [-7 * elements] or scheme == "q15"
    acc = (values.sum(1, keepdims=True) + bias) << (0 if scheme == "q15" else 8)
    result = execute(requant, CLAMPS[dtype], acc, [])
    for row, value, got in zip(values, acc[:, 0].tolist(), result[:, 0].tolist(), strict=True):
        y = (int(row.sum()) - 7 * elements) * accumulator.unit[0] / code_out.scale + code_out.zero_point
        if scheme == "q31":
            error = q31_error(requant, 0, [value])
        else:
            error, _ = q15_error(requant, 0, value, accumulator.unit[0] / code_out.scale, [])
        assert_within(got, y, error, CLAMPS[dtype])


@given(sums())
@settings(max_examples=100, deadline=None)
def test_logits_are_accumulators_in_steps_of_the_largest_scale(s: Sum):
    accumulator = weighted_accumulator(s.weight, s.weight_scale, s.bias, s.source)
    bias, scale = scale_logits(accumulator)
    acc = s.inputs @ s.weight.astype(np.int64).T + bias
    logits = execute_logits(scale, acc)
    largest = max(accumulator.unit)
    for sample, channel in np.ndindex(logits.shape):
        value = int(acc[sample, channel])
        exact = (value * accumulator.unit[channel] + accumulator.offset[channel]) / largest
        error = Fraction(abs(value) + 1, 2**31)  # multiplier and constant, each off by 1/2 in 2**30
        low, high = (floor(exact + Fraction(1, 2) + sign * error) for sign in (-1, 1))
        assert low <= int(logits[sample, channel]) <= high


# --- known answers ---------------------------------------------------------------------------------------------------


def plain(scale: Fraction | int, channels: int = 1, offset: Fraction | int = 0) -> Accumulator:
    return Accumulator(
        [Fraction(scale)] * channels,
        [Fraction(offset)] * channels,
        np.zeros(channels, np.int64),
        np.full(channels, 1000),
    )


ONE = Quantization(Fraction(1), 0, (-127, 127))


def test_q15_of_a_power_of_two():
    bias, requant = requantize("q15", plain(Fraction(1, 1024)), [], ONE)
    # 2**15 / 1024 = 32; six doublings reach 2**11; half of 2**6 rounds the shift.
    assert (requant.multiplier.tolist(), requant.shift.tolist(), bias.tolist()) == ([2048], [6], [32])


def test_q15_beside_a_term():
    term = Quantization(Fraction(1, 2), 0, (0, 255))
    bias, requant = requantize("q15", plain(Fraction(1, 1024), offset=3), [term], ONE)
    # 2**18 / 1024 = 256; five doublings reach 2**13; 3 - 1/16 of 1024 accumulator steps, and half of 2**5.
    assert (requant.multiplier.tolist(), requant.shift.tolist(), bias.tolist()) == ([8192], [5], [3072 - 64 + 16])
    assert (requant.term_multipliers.tolist(), requant.offset) == ([1024], 4)


def test_q15_constant_without_accumulator():
    terms = [Quantization(Fraction(1, 2), 10, (0, 255)), Quantization(Fraction(1, 4), 0, (0, 255))]
    _, requant = requantize("q15", None, terms, Quantization(Fraction(1), 3, (0, 255)))
    assert (requant.term_multipliers.tolist(), requant.offset) == ([1024, 512], 4 + 8 * (3 - 5))


def test_q31_of_a_power_of_two():
    bias, requant = requantize("q31", plain(Fraction(1, 1024), offset=3), [], ONE)
    # 2**40 / 1024 = 2**30 is the last power of two below 2**31.
    assert (requant.multiplier.tolist(), requant.shift.tolist(), bias.tolist()) == ([2**30], [40], [0])
    assert requant.rounding.tolist() == [3 * 2**40 + 2**39]


def test_q31_shift_leaves_room_for_the_constant():
    _, requant = requantize("q31", plain(Fraction(1, 2**30), offset=2**10), [], ONE)
    # 2**30 * 2**-30 would allow shift 60, but 2**10 * 2**60 does not fit 63 bits.
    assert requant.shift.tolist() == [52]
    assert requant.rounding.tolist() == [2**62 + 2**51]


def test_identity_of_a_stored_term():
    for scheme in SCHEMES:
        code_in = Quantization(Fraction(1, 50), 12, (0, 255))
        _, requant = requantize(scheme, None, [code_in], code_in)
        values = np.arange(256, dtype=np.uint8)
        assert execute(requant, CLAMPS["uint8"], None, [values]).tolist() == values.tolist()


def test_a_channel_without_weights_takes_the_largest_scale():
    weight = np.array([[5, 1], [0, 0], [7, 2]], np.int8)
    accumulator = weighted_accumulator(weight, np.array([0.5, 1e-9, 0.25]), np.array([0.0, 3.0, 0.0]), ONE)
    assert accumulator.unit == [Fraction(1, 2), Fraction(1, 2), Fraction(1, 4)]
    assert accumulator.reach.tolist() == [6 * 127, 0, 9 * 127]


def test_zero_point_of_the_input_becomes_an_integer_correction():
    accumulator = weighted_accumulator(
        np.array([[3, -5]], np.int8), np.array([1.0]), None, Quantization(Fraction(1, 2**10), 9, (0, 255))
    )
    assert accumulator.correction.tolist() == [18]
    assert requantize("q31", accumulator, [], ONE)[0].tolist() == [18]
    assert requantize("q15", accumulator, [], ONE)[0].tolist() == [18 + 32]


@pytest.mark.parametrize(
    ("value", "rounded"), [("1/2", 1), ("-1/2", 0), ("-3/2", -1), ("5/2", 3), ("-7/3", -2), ("4", 4)]
)
def test_round_half_up(value: str, rounded: int):
    assert round_half_up(Fraction(value)) == rounded


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "accumulator", "terms", "message"),
    [
        ("q15", plain(1), [], "q15 cannot scale channel 0 by 1"),
        ("q15", plain(Fraction(1, 2**40)), [], "q15 cannot scale channel 0"),
        ("q15", plain(Fraction(-1, 64)), [], "q15 cannot scale channel 0"),
        (
            "q15",
            plain(Fraction(1, 15)),
            [Quantization(Fraction(20), 0, (0, 255))],
            "q15 cannot scale a residual term by 20",
        ),
        ("q15", None, [Quantization(Fraction(1, 5000), 0, (0, 255))], "q15 cannot scale a residual term by 0.0002"),
        ("q15", plain(Fraction(1, 2**30), offset=8), [], "q15 bias of channel 0 is .*, beyond 32 bits"),
        ("q31", plain(Fraction(1, 2)), [], "no 64-bit requantization scales channel 0 by 0.5"),
        ("q31", plain(Fraction(1, 64), offset=2**40), [], "no 64-bit requantization"),
    ],
)
def test_scales_that_a_scheme_cannot_hold(scheme: str, accumulator: Accumulator | None, terms: list, message: str):
    with pytest.raises(ModelError, match=message) as caught:
        requantize(scheme, accumulator, terms, ONE)
    assert "\n" not in str(caught.value)


def test_q15_pixels_need_an_eighth_of_a_step():
    with pytest.raises(ModelError, match="q15 cannot scale channel 0"):
        requantize("q15", plain(Fraction(1, 9)), [], ONE, "pixels")
    assert requantize("q15", plain(Fraction(257, 2048)), [], ONE, "pixels")[1].multiplier.tolist() == [257]


def test_q31_takes_a_falling_function_of_the_pixel():
    _, requant = requantize("q31", plain(Fraction(-1, 2)), [], ONE, "pixels")
    assert requant.multiplier.tolist() == [-(2**30)]


def test_logit_bias_beyond_32_bits():
    with pytest.raises(ModelError, match="the bias of logit 0 is beyond"):
        scale_logits(plain(Fraction(1, 2**20), offset=2**12))
