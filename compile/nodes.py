"""Node kinds of an IntegerGraph: what a quantized network is made of, as frozen dataclasses of integers.

A node names its operands by their position in the graph. Activations are channels-last: ``(H, W, C)`` for images,
``(C,)`` for vectors, always without the batch axis. docs/arithmetic.md defines both requantization schemes to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intcert.runtime.errors import ModelError

STORED_RANGE = {"int8": (-128, 127), "uint8": (0, 255)}
#: Extremes of pixel + noise that every kernel must accept (16 bits; the noise law cuts its tail far below).
INPUT_RANGE = (-(2**15), 2**15 - 1)

Shape = tuple[int, ...]
Range = tuple[int, int]


def require(condition: bool, message: str) -> None:
    """Raise ModelError with this message unless the condition holds."""
    if not condition:
        raise ModelError(message)


def require_array(name: str, value: np.ndarray, dtype: str, ndim: int) -> None:
    """Raise ModelError unless value is an array of this dtype and number of dimensions."""
    require(
        isinstance(value, np.ndarray) and value.dtype == np.dtype(dtype) and value.ndim == ndim,
        f"{name} must be a {ndim}-dimensional {dtype} array, "
        f"not {getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Requantization: how an exact integer sum becomes an 8-bit activation
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RequantQ15:
    """The 16-bit high-multiply scheme (docs/arithmetic.md, "q15").

    With an accumulator (bias B already added): ``v = sat16(acc >> shift)``, ``u = (v * multiplier + 2**14) >> 15``.
    Each stored term a_j adds ``((a_j << 7) * term_multipliers[j] + 2**14) >> 15``. With terms the sum gets
    ``+ offset`` and ``>> 3``; without terms the result is u. Then it is clamped to the node's ``lo .. hi``.

    multiplier: int16[C], or int16[0] where there is no accumulator; shift: int8[C] in 0..30, likewise;
    term_multipliers: int16[T]; offset: 4 (rounding) plus any constant, in eighths of an output step; used with terms.
    """

    multiplier: np.ndarray
    shift: np.ndarray
    term_multipliers: np.ndarray
    offset: int = 4

    def __post_init__(self) -> None:
        require_array("q15 multiplier", self.multiplier, "int16", 1)
        require_array("q15 shift", self.shift, "int8", 1)
        require_array("q15 term_multipliers", self.term_multipliers, "int16", 1)
        require(self.multiplier.shape == self.shift.shape, "q15 multiplier and shift differ in length")
        top = 16383 if self.term_multipliers.size else 32767
        require(bool(((self.multiplier > 0) & (self.multiplier <= top)).all()), f"q15 multiplier outside 1..{top}")
        require(bool((self.term_multipliers > 0).all()), "q15 term multiplier outside 1..32767")
        require(bool(((self.shift >= 0) & (self.shift <= 30)).all()), "q15 shift outside 0..30")
        require(abs(self.offset) <= 2**15, f"q15 offset {self.offset} does not fit 16 bits; use scheme q31")

    @property
    def channels(self) -> int:
        """Length of the per-channel arrays; 0 where the scheme has no accumulator."""
        return len(self.multiplier)

    def select(self, entries: np.ndarray) -> RequantQ15:
        """The same scheme with these entries of its per-channel arrays. entries: int[N]."""
        return RequantQ15(self.multiplier[entries], self.shift[entries], self.term_multipliers, self.offset)

    def check_terms(self, terms: list[Range]) -> None:
        """Prove that no 16-bit sum overflows for stored terms within these ranges."""
        reach = sum(int(m) * max(-lo, hi) for m, (lo, hi) in zip(self.term_multipliers, terms, strict=True))
        limit = (767 if self.channels else 4000) << 11
        require(
            reach <= limit,
            f"q15 residual terms reach {reach / 2048:.0f} output steps, over {limit >> 11}; use scheme q31",
        )
        require(
            self.channels == 0 or self.offset == 4,
            "q15 constants belong into the bias where there is an accumulator",
        )
        # Kernels whose last shift rounds add offset - 4.
        require(
            reach / 256 + abs(self.offset) <= 32763,
            f"q15 offset {self.offset} overflows the 16-bit sum; use scheme q31",
        )


@dataclass(frozen=True, eq=False)
class RequantQ31:
    """The 64-bit scheme (docs/arithmetic.md, "q31").

    ``(acc * multiplier + sum_j (a_j << 8) * term_multipliers[j] + rounding) >> shift``, clamped to ``lo .. hi``.

    multiplier: int32[C], or int32[0] where there is no accumulator; term_multipliers: int32[T, C];
    rounding: int64[C]; shift: int8[C] in 32..62. Without an accumulator C is 1: one constant for the whole tensor.
    """

    multiplier: np.ndarray
    term_multipliers: np.ndarray
    rounding: np.ndarray
    shift: np.ndarray

    def __post_init__(self) -> None:
        require_array("q31 multiplier", self.multiplier, "int32", 1)
        require_array("q31 term_multipliers", self.term_multipliers, "int32", 2)
        require_array("q31 rounding", self.rounding, "int64", 1)
        require_array("q31 shift", self.shift, "int8", 1)
        require(
            self.rounding.shape == self.shift.shape == self.term_multipliers.shape[1:]
            and len(self.multiplier) in (0, len(self.shift)),
            "q31 arrays differ in length",
        )
        require(bool(((self.shift >= 32) & (self.shift <= 62)).all()), "q31 shift outside 32..62")

    @property
    def channels(self) -> int:
        """Length of the per-channel arrays; 0 where the scheme has no accumulator."""
        return len(self.multiplier)

    def select(self, entries: np.ndarray) -> RequantQ31:
        """The same scheme with these entries of its per-channel arrays. entries: int[N]."""
        return RequantQ31(
            self.multiplier[entries], self.term_multipliers[:, entries], self.rounding[entries], self.shift[entries]
        )

    def check_sum(self, accumulator: np.ndarray, terms: list[Range]) -> None:
        """Prove that no 64-bit sum overflows for ``|acc| <= accumulator[C]`` and stored terms within these ranges."""
        for c in range(len(self.shift)):
            reach = abs(int(self.rounding[c]))
            if self.channels:
                reach += int(accumulator[c]) * abs(int(self.multiplier[c]))
            for m, (lo, hi) in zip(self.term_multipliers[:, c], terms, strict=True):
                reach += (max(-lo, hi) << 8) * abs(int(m))
            require(reach < 2**63, f"q31 sum of channel {c} reaches {reach}, over 2**63")


@dataclass(frozen=True, eq=False)
class LogitScale:
    """Logits of a float output: ``(acc * multiplier + rounding) >> 30`` in 64 bits, the same in both schemes.

    multiplier: int32[C] in 0..2**30, rounding: int64[C].
    """

    multiplier: np.ndarray
    rounding: np.ndarray

    def __post_init__(self) -> None:
        require_array("logit multiplier", self.multiplier, "int32", 1)
        require_array("logit rounding", self.rounding, "int64", 1)
        require(self.multiplier.shape == self.rounding.shape, "logit arrays differ in length")
        require(
            bool(((self.multiplier >= 0) & (self.multiplier <= 2**30)).all()),
            "logit multiplier outside 0..2**30",
        )
        require(bool((np.abs(self.rounding) < 2**61).all()), "logit rounding does not fit 62 bits")

    @property
    def channels(self) -> int:
        return len(self.multiplier)


Requant = RequantQ15 | RequantQ31


# ---------------------------------------------------------------------------------------------------------------------
# Nodes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Clamp:
    """The 8-bit result of a requantization: dtype, and the bounds that carry ReLU and ReLU6."""

    dtype: str
    lo: int
    hi: int

    def __post_init__(self) -> None:
        require(self.dtype in STORED_RANGE, f"stored dtype {self.dtype!r} is neither int8 nor uint8")
        least, most = STORED_RANGE[self.dtype]
        require(least <= self.lo <= self.hi <= most, f"clamp {self.lo}..{self.hi} does not fit {self.dtype}")


@dataclass(frozen=True, eq=False)
class InputQuantize:
    """Pixel + noise, int16 (H, W, C), to the network's first activation.

    q15: the accumulator is ``16 * x + bias``; q31: it is ``(x << 8) + bias`` with ``bias`` 0. bias: int32[C].
    """

    bias: np.ndarray
    requant: Requant
    clamp: Clamp


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Convolution, residual add and requantization in one.

    weight: int8[O, KH, KW, I / groups]; padding: (top, left, bottom, right), filled with ``pad_value`` (the input's
    zero point); bias: int32[O], added to the accumulator; terms: operands of the fused residual add.
    With a LogitScale the result is int32 and clamp is None.
    """

    input: int
    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    pad_value: int
    requant: Requant | LogitScale
    clamp: Clamp | None
    terms: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Linear:
    """Matrix product with a vector, residual add and requantization in one. weight: int8[O, I]; bias: int32[O].

    With a LogitScale the result is int32 and clamp is None.
    """

    input: int
    weight: np.ndarray
    bias: np.ndarray
    requant: Requant | LogitScale
    clamp: Clamp | None
    terms: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Add:
    """Requantized sum of one or more stored tensors of one shape; with one term, a change of scale."""

    terms: tuple[int, ...]
    requant: Requant
    clamp: Clamp


@dataclass(frozen=True, eq=False)
class AvgPool2d:
    """Average over bins, as one int32 sum and its own requantization.

    rows: int32[OH, 2] and columns: int32[OW, 2] are the half-open bins of the input that each output sums;
    kind: int32[OH, OW] says which entry of ``bias`` and ``requant`` serves an output position: one entry per distinct
    divisor, since padding and uneven adaptive bins change it. bias: int32[K], added to the sum.
    q31: the accumulator is ``(sum + bias) << 8``.
    """

    input: int
    rows: np.ndarray
    columns: np.ndarray
    kind: np.ndarray
    bias: np.ndarray
    requant: Requant
    clamp: Clamp


@dataclass(frozen=True, eq=False)
class MaxPool2d:
    """Maximum over windows; padding (top, left, bottom, right) counts as the dtype's minimum."""

    input: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Concat:
    """Channels of tensors of one dtype and one scale, one after the other."""

    inputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Slice:
    """Every ``step``-th row, column and channel from ``start`` up to ``stop`` (exclusive), as (H, W, C) triples."""

    input: int
    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    step: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Pad:
    """Constant rows, columns and channels before and after, as (H, W, C) triples; value is the zero point."""

    input: int
    before: tuple[int, int, int]
    after: tuple[int, int, int]
    value: int


@dataclass(frozen=True, eq=False)
class Flatten:
    """(H, W, C) to a vector in PyTorch's order: channel slowest, then row, then column."""

    input: int


Node = InputQuantize | Conv2d | Linear | Add | AvgPool2d | MaxPool2d | Concat | Slice | Pad | Flatten
NODE_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (InputQuantize, Conv2d, Linear, Add, AvgPool2d, MaxPool2d, Concat, Slice, Pad, Flatten)
}


def operands(node: Node) -> tuple[int, ...]:
    """Positions of the nodes that this one reads, in order."""
    own = getattr(node, "inputs", ()) or ((node.input,) if hasattr(node, "input") else ())
    return (*own, *getattr(node, "terms", ()))
