"""What a float tensor of a quantized program is, in integers: the abstract values of the importer.

Between a dequantize and the next quantize a tensor is never computed. It is described as a sum of stored 8-bit tensors
and at most one head (an int32 accumulator, or the pixels), a pending clamp, and pending data movement. Movement and
clamps that contain 0 can wait for the quantization: it is monotone, acts on elements and keeps 0, so it commutes with
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from intcert.compile.nodes import STORED_RANGE, Clamp, Node, Requant
from intcert.compile.requantize import Accumulator, Quantization, Source, round_half_up
from intcert.runtime.errors import ModelError


@dataclass(frozen=True)
class Output:
    """A quantize node: the code it produces, whose range is quant_min..quant_max, and the dtype."""

    code: Quantization
    dtype: str

    def clamp(self, low: Fraction | None, high: Fraction | None) -> Clamp:
        """Integer bounds of a tensor that is clamped to low..high before it is quantized."""
        least, most = self.code.range
        floor, ceiling = STORED_RANGE[self.dtype]
        least, most = max(least, floor), min(most, ceiling)
        lo = least if low is None else self._encode(low)
        hi = most if high is None else self._encode(high)
        return Clamp(self.dtype, min(max(lo, least), most), max(min(hi, most), least))

    def _encode(self, value: Fraction) -> int:
        return self.code.zero_point + round_half_up(value / self.code.scale)


@dataclass(frozen=True)
class Stored:
    """A dequantized tensor: node ``index`` of the integer graph, read with ``code``."""

    index: int
    code: Quantization


@dataclass(frozen=True)
class Pixels:
    """The input after its normalisation: per channel ``scale * pixel + offset``, pixel in 0..255."""

    scale: tuple[Fraction, ...]
    offset: tuple[Fraction, ...]


@dataclass(frozen=True, eq=False)
class Pending:
    """An accumulator that waits for its requantization.

    build makes the node from bias, requantization, clamp and residual terms; averages take no terms.
    """

    build: Callable[[np.ndarray, Requant, Clamp | None, tuple[int, ...]], Node]
    accumulator: Accumulator
    source: Source


@dataclass(frozen=True, eq=False)
class Joined:
    """A concatenation of pieces whose scales differ, or which are not stored yet."""

    pieces: tuple[Value, ...]


#: Data movement on a stored tensor: from the tensor's index and code to the node.
Move = Callable[[int, Quantization], Node]


@dataclass(frozen=True, eq=False)
class Value:
    """``moves(clamp(head + sum of terms))``, with the name of the node that produced it, for messages and labels."""

    name: str
    head: Pixels | Pending | Joined | None = None
    terms: tuple[Stored, ...] = ()
    low: Fraction | None = None
    high: Fraction | None = None
    moves: tuple[Move, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether more can be added to it: no clamp and no movement pends."""
        return self.low is None and self.high is None and not self.moves

    @property
    def stored(self) -> Stored | None:
        """The stored tensor that this value is, where it is nothing else."""
        return self.terms[0] if self.head is None and len(self.terms) == 1 and self.is_open else None

    def clamped(self, low: Fraction | None, high: Fraction | None) -> Value:
        """The value clamped to low..high (None: no bound), an interval around 0."""
        if (low is not None and low > 0) or (high is not None and high < 0):
            raise ModelError("clamps to an interval without 0; clamp around 0, as ReLU does")
        lows, highs = ([b for b in bounds if b is not None] for bounds in ((self.low, low), (self.high, high)))
        return replace(self, low=max(lows, default=None), high=min(highs, default=None))


@dataclass(frozen=True)
class Codes:
    """The 8-bit tensor that a quantize node gives, before its dequantize: node ``index`` of the integer graph."""

    index: int


@dataclass(frozen=True, eq=False)
class Weight:
    """Dequantized int8 weights. weight: int8[O, ...]; scale: float64[O]."""

    weight: np.ndarray
    scale: np.ndarray
