"""The noise law: integer tables from which every device draws the same discrete Gaussian noise, bit for bit.

docs/noise.md states the law and proves that the draw has it. In short: |X| of the discrete Gaussian N_Z(0, sigma^2)
(P[X = k] proportional to exp(-k^2 / 2 sigma^2); Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential
Privacy", 2020) is split into cells of equal mass that 15 bits select through an alias table (Vose, "A linear algorithm
for generating random numbers with a given distribution", 1991); the mass that does not fill whole cells is pooled into
one residual law, drawn from 64 fresh bits when column 255, the escape, comes up.

Everything here is integer interval arithmetic; no float enters a table.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from mpmath import libmp

from intcert.runtime import packing
from intcert.runtime.decimals import canonical_decimal, parse_decimal
from intcert.runtime.errors import ArtifactError, SigmaError

MAX_SIGMA = 4
PIXEL_STEPS = 255  # one unit of the [0, 1] scale in pixel steps
COLUMNS = 256
ESCAPE = 255

_PRIMARY_BITS = 15  # of the 16 bits of a primary draw, one is the sign
_RESIDUAL_BITS = 64
_TV_BITS = 128
_FIRST_PRECISION = 256


@dataclass(frozen=True, eq=False)
class NoiseLaw:
    """The tables of one noise level and how far their law is from the discrete Gaussian.

    Attributes:
        sigma: noise level on the [0, 1] scale, an exact decimal in canonical form (``0.25``, not ``0.250``).
        s: every primary column stands for a block of 2^s neighbouring magnitudes; least s with sigma <= 64 * 2^s steps.
        L: the residual table has 2^L columns and covers the magnitudes 0 .. 2^L - 1, in pixel steps.
        thr: uint8[256], cells of each primary column that are its own (0 .. 2^cell_bits).
        al: uint8[256], the column that owns the remaining cells.
        rt: uint64[2^L], residual columns as ``threshold << L | alias``.
        tv: upper bound of the total variation distance between one drawn coordinate and N_Z(0, sigma^2), the tails
            beyond the table included.
    """

    sigma: str
    s: int
    L: int
    thr: np.ndarray
    al: np.ndarray
    rt: np.ndarray
    tv: Fraction

    def __post_init__(self) -> None:
        for array in (self.thr, self.al, self.rt):
            array.flags.writeable = False

    @property
    def sigma_steps(self) -> Fraction:
        """The noise level in pixel steps, 255 * sigma, exactly."""
        return PIXEL_STEPS * Fraction(self.sigma)

    @property
    def cell_bits(self) -> int:
        """Logarithm of the number of cells in a primary column."""
        return 7 - self.s

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 in hex of sigma, s, L, thr, al and rt in the layout of ``packing.pack``."""
        return packing.digest(self._identity(), (self.thr, self.al, self.rt))

    def to_bytes(self) -> bytes:
        """The law as bytes for an artifact; ``from_bytes`` reads them."""
        header = self._identity() | {"tv": str(self.tv)}
        return packing.pack(header, (self.thr, self.al, self.rt))

    @classmethod
    def from_bytes(cls, data: bytes) -> "NoiseLaw":
        """Read what ``to_bytes`` wrote.

        Raises:
            ArtifactError: the bytes are damaged or describe no noise law.
        """
        try:
            header, (thr, al, rt) = packing.unpack(data)
            tv = Fraction(header.pop("tv"))
            law = cls(thr=thr, al=al, rt=rt, tv=tv, **header)
            if (law.s, law.L) != _table_sizes(PIXEL_STEPS * parse_sigma(law.sigma)):
                raise ValueError(f"s = {law.s}, L = {law.L} do not belong to sigma {law.sigma}")
            expected = [(np.uint8, (COLUMNS,)), (np.uint8, (COLUMNS,)), (np.uint64, (1 << law.L,))]
            if [(array.dtype, array.shape) for array in (thr, al, rt)] != expected:
                raise ValueError("the tables have the wrong types or sizes")
        except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, SigmaError) as error:
            raise ArtifactError(f"damaged noise law ({error}); compile the model again") from error
        return law

    def _identity(self) -> dict[str, str | int]:
        return {"sigma": self.sigma, "s": self.s, "L": self.L}


def parse_sigma(text: str) -> Fraction:
    """The noise level that ``text`` names, on the [0, 1] scale.

    Raises:
        SigmaError: not a plain decimal, not positive, or above 4 (as if meant for the 0 .. 255 scale).
    """
    sigma = parse_decimal(text)
    if sigma is None:
        raise SigmaError(f"sigma {text!r} is not a plain decimal; give the noise level on the [0, 1] scale, like 0.25")
    if sigma == 0:
        raise SigmaError(f"sigma {text!r} is not positive; give the noise level on the [0, 1] scale, like 0.25")
    if sigma > MAX_SIGMA:
        raise SigmaError(
            f"sigma {text!r} is above {MAX_SIGMA}.0: sigma is on the [0, 1] scale; "
            f"if {text} was meant in pixel steps (0..255), give {text} / 255 = {float(sigma / PIXEL_STEPS):.6g}"
        )
    return sigma


def noise_law(sigma: str) -> NoiseLaw:
    """Build (once per process) the law of noise level ``sigma``, a decimal on the [0, 1] scale.

    Different spellings of one number give the same law and the same digest.

    Raises:
        SigmaError: as ``parse_sigma``, or a noise level below one pixel step, which no certificate can serve.
    """
    parse_sigma(sigma)
    return _build_law(canonical_decimal(sigma))


@functools.cache
def _build_law(sigma: str) -> NoiseLaw:
    steps = PIXEL_STEPS * parse_sigma(sigma)
    if steps < 1:
        raise SigmaError(
            f"sigma {sigma!r} is {float(steps):.6g} pixel steps, and noise below one step certifies nothing; "
            f"give at least {1 / PIXEL_STEPS:.4f}"
        )
    precision = _FIRST_PRECISION
    while (law := _law_at_precision(sigma, steps, precision)) is None:
        precision *= 2
    return law


def _table_sizes(steps: Fraction) -> tuple[int, int]:
    """The exponents s and L for a noise level in pixel steps."""
    block_bits = 0
    while steps > 64 << block_bits:
        block_bits += 1
    index_bits = 10
    while 16 * steps > 1 << index_bits:
        index_bits += 1
    return block_bits, index_bits


def _law_at_precision(sigma: str, steps: Fraction, precision: int) -> NoiseLaw | None:
    """The law, or None if ``precision`` bits do not determine every floor and the order of the remainders."""
    s, index_bits = _table_sizes(steps)
    low, high, tail = _magnitude_law(steps, 1 << index_bits, precision)
    primary = _primary_weights(low, s, precision)
    if primary != _primary_weights(high, s, precision):
        return None
    residual = _residual_weights(low, high, primary, s, precision)
    if residual is None:
        return None

    capacity = 1 << (7 - s)
    thr, al = _vose_alias(primary, capacity)
    residual_capacity = 1 << (_RESIDUAL_BITS - index_bits)
    thresholds, aliases = _vose_alias(residual, residual_capacity)
    # A full column's threshold would need one bit more; threshold 0 with itself as the alias means the same.
    entries = [(t % residual_capacity) << index_bits | a for t, a in zip(thresholds, aliases, strict=True)]
    return NoiseLaw(
        sigma=sigma,
        s=s,
        L=index_bits,
        thr=np.array(thr, dtype=np.uint8),
        al=np.array(al, dtype=np.uint8),
        rt=np.array(entries, dtype=np.uint64),
        tv=_total_variation(low, high, tail, primary, residual, s, precision),
    )


def _magnitude_law(steps: Fraction, size: int, precision: int) -> tuple[list[int], list[int], int]:
    """Bounds on q(0) = p(0) and q(k) = 2 p(k), k < ``size``, and one on the mass beyond, in units of 2^-precision."""
    one = 1 << precision
    exponent = -1 / (2 * steps * steps)

    def exponential(rounding: str) -> int:
        work = precision + 32
        argument = libmp.from_rational(exponent.numerator, exponent.denominator, work, rounding)
        return libmp.to_int(libmp.mpf_shift(libmp.mpf_exp(argument, work, rounding), precision), rounding)

    def kernel(start: int, up: int) -> tuple[list[int], int]:
        # rho(k) = start^(k^2), k <= size, and start^(2 size + 1), every product rounded down (up = 0) or up (up = 1).
        ratio, square = start, (start * start >> precision) + up
        values = [one]
        for _ in range(size):
            values.append((values[-1] * ratio >> precision) + up)
            ratio = (ratio * square >> precision) + up
        return values, ratio

    rho_low, _ = kernel(exponential("f"), 0)
    rho_high, ratio = kernel(exponential("c"), 1)
    # From k = size on, each value is at most ``ratio`` times the one before: a geometric series bounds the tail.
    beyond = rho_high[size] * one // (one - ratio) + 1
    total_low = rho_low[0] + 2 * sum(rho_low[1:size])
    total_high = rho_high[0] + 2 * sum(rho_high[1:size]) + 2 * beyond
    low = [(1 if k == 0 else 2) * rho_low[k] * one // total_high for k in range(size)]
    high = [(1 if k == 0 else 2) * rho_high[k] * one // total_low + 1 for k in range(size)]
    return low, high, 2 * beyond * one // total_low + 1


def _primary_weights(law: Sequence[int], s: int, precision: int) -> list[int]:
    """Whole cells that every value of each block fills, and in column 255 the cells left over."""
    block = 1 << s
    weights = [
        min(law[column * block : (column + 1) * block]) * (1 << _PRIMARY_BITS) >> precision for column in range(ESCAPE)
    ]
    cells = 1 << (_PRIMARY_BITS - s)
    return [*weights, cells - sum(weights)]


def _residual_weights(
    low: Sequence[int], high: Sequence[int], primary: Sequence[int], s: int, precision: int
) -> list[int] | None:
    """The residual law as integers with sum 2^64 by largest remainder; None where the bounds leave it open."""
    one = 1 << precision
    denominator = primary[ESCAPE] << (s + precision)

    def scaled(bound: int, x: int) -> int:
        # r(x) 2^64 times the denominator; a lower bound may dip below the true r(x) >= 0.
        excess = (bound << _PRIMARY_BITS) - (_drawn_cells(primary, x, s) * one)
        return max(excess, 0) << _RESIDUAL_BITS

    weights, remainders = [], []
    for x in range(len(low)):
        least, least_remainder = divmod(scaled(low[x], x), denominator)
        most, most_remainder = divmod(scaled(high[x], x), denominator)
        if least != most:
            return None
        weights.append(least)
        remainders.append((least_remainder, most_remainder))
    missing = (1 << _RESIDUAL_BITS) - sum(weights)
    order = sorted(range(len(weights)), key=lambda x: -remainders[x][0])
    raised, kept = order[:missing], order[missing:]
    # Only the choice of the raised values enters the law, so only it has to be beyond doubt.
    if raised and kept and min(remainders[x][0] for x in raised) <= max(remainders[x][1] for x in kept):
        return None
    for x in raised:
        weights[x] += 1
    return weights


def _drawn_cells(primary: Sequence[int], x: int, s: int) -> int:
    """Cells from which the primary draw returns the magnitude ``x``, of 2^15."""
    column = x >> s
    return primary[column] if column < ESCAPE else 0


def _vose_alias(weights: Sequence[int], capacity: int) -> tuple[list[int], list[int]]:
    """Vose's alias method in integers: column i keeps ``threshold[i]`` of its cells and ``alias[i]`` has the rest.

    Both stacks have the smallest index on top, which fixes the tables; a full column is its own alias.
    """
    remaining = list(weights)
    threshold = [capacity] * len(remaining)
    alias = list(range(len(remaining)))
    small = [i for i in reversed(alias) if remaining[i] < capacity]
    large = [i for i in reversed(alias) if remaining[i] >= capacity]
    while small:
        receiver, donor = small.pop(), large[-1]
        threshold[receiver], alias[receiver] = remaining[receiver], donor
        remaining[donor] -= capacity - remaining[receiver]
        if remaining[donor] < capacity:
            small.append(large.pop())
    return threshold, alias


def _total_variation(
    low: Sequence[int],
    high: Sequence[int],
    tail: int,
    primary: Sequence[int],
    residual: Sequence[int],
    s: int,
    precision: int,
) -> Fraction:
    """Upper bound of the distance between the drawn magnitude and |N_Z|, rounded up to a multiple of 2^-128.

    A symmetric law's distance is that of its magnitude, so signs need no care.
    """
    unit = _PRIMARY_BITS + _RESIDUAL_BITS
    escape_mass = primary[ESCAPE] << s
    distance = tail << unit
    for x in range(len(low)):
        drawn = (_drawn_cells(primary, x, s) << _RESIDUAL_BITS) + escape_mass * residual[x] << precision
        distance += max(drawn - (low[x] << unit), (high[x] << unit) - drawn)
    scale = precision + unit + 1  # one bit for the 1/2 of total variation
    return Fraction(-(-distance >> (scale - _TV_BITS)), 1 << _TV_BITS)
