"""The end of every kernel: an int32 accumulator becomes an 8-bit activation, or a logit.

The expressions follow docs/arithmetic.md line by line. They are written on vectors of int32 (q15) and int64 (q31); each
intermediate is used once, so that LLVM sees one chain. Where the target has a unit for it, other instructions compute
the same integers: q15 in 16-bit lanes on AVX-512 (epilogue16.py), both schemes on NEON (epilogue_neon.py).

Constants travel in two arrays: ``narrow`` int32[width * (2 or 3 + T)] and ``wide`` int64. ``width`` is the number of
entries, which is the channel stride, or, for average pooling, the number of kinds of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from types import ModuleType

import numpy as np
from tvm import tirx

from intcert.compile.kernels import epilogue16, epilogue_neon
from intcert.compile.kernels.base import LANES, Expr, Index, local, part, splat, store, typed, vector
from intcert.compile.nodes import Clamp, LogitScale, Requant, RequantQ15

#: Loads entries ``start + (channels of the current vector)`` of a constant array.
Load = Callable[[tirx.Buffer, int], Expr]


@dataclass(frozen=True)
class Epilogue:
    """Which formula, and where its constants lie; hashable, so that kernels can be cached by it.

    scheme: "q15", "q31" or "logits"; accumulator: whether there is one; pre_shift: bits by which it is shifted left
    first (q31 input and pooling); terms: dtypes of the stored terms; unit: the target's ``q15_unit``.
    """

    scheme: str
    accumulator: bool
    terms: tuple[str, ...]
    width: int
    dtype: str
    lo: int = 0
    hi: int = 0
    pre_shift: int = 0
    unit: str = "int32"

    @property
    def narrow_size(self) -> int:
        """Elements of the int32 constants."""
        scalars = len(self.terms) + 1 if self.scheme == "q15" else len(self.terms) * self.width
        return {"q15": 3, "q31": 2, "logits": 2}[self.scheme] * self.width + scalars

    @property
    def wide_size(self) -> int:
        """Elements of the int64 constants."""
        return 2 * self.width

    def store_run(
        self,
        output: tirx.Buffer,
        at: Expr,
        accumulators: list[Expr] | None,
        channels: list[Index],
        terms: Sequence[tirx.Buffer],
        constants: tuple[tirx.Buffer, tirx.Buffer],
        lanes: int = LANES,
        step: int | None = None,
    ) -> None:
        """Emit the results of accumulator vectors.

        at: where the first result and its stored terms lie; channels: the first channel of each vector; step: elements
        from one vector of results to the next, by default none between them.
        """
        scattered = step not in (None, lanes)
        step = step or lanes
        pack = self._pack(lanes)
        width = pack.LANES if pack else lanes
        starts = range(0, lanes, width)
        widest = pack.REGISTERS // len(starts) if pack and not (scattered and terms) else 1
        begin = 0
        while begin < len(channels):
            # The greatest power of two that is left.
            count = min(widest, 1 << ((len(channels) - begin).bit_length() - 1))
            loads = [
                lambda buffer, base, channel=channel + start: vector(buffer, base + channel, width)
                for channel, start in product(channels[begin : begin + count], starts)
            ]
            given = accumulators and [
                part(sums, start, width) for sums, start in product(accumulators[begin : begin + count], starts)
            ]
            here = at + begin * step
            stored = [vector(term, here, lanes * count) for term in terms]
            if pack:
                value = pack.packed_result(self, given, stored, loads, constants)
            else:
                value = self.result(given and given[0], stored, loads[0], constants, lanes)
            if scattered and count > 1:
                together = local(lanes * count, self.dtype)
                store(together, 0, value, lanes * count)
                for i in range(count):
                    store(output, here + i * step, vector(together, i * lanes, lanes), lanes)
            else:
                store(output, here, value, lanes * count)
            begin += count

    def _pack(self, lanes: int) -> ModuleType | None:
        """The module that requantizes vectors of ``lanes`` sums on the target's own unit, if one does."""
        if self.unit == "vpmulhrsw" and self.scheme == "q15" and lanes == epilogue16.LANES:
            return epilogue16
        if self.unit in epilogue_neon.UNITS and self.scheme != "logits" and self.pre_shift == 0 and lanes % 4 == 0:
            return epilogue_neon
        return None

    def result(
        self,
        accumulator: Expr | None,
        terms: list[Expr],
        load: Load,
        constants: tuple[tirx.Buffer, tirx.Buffer],
        lanes: int,
    ) -> Expr:
        """The 8-bit (or, for logits, int32) result vector of one int32 accumulator vector, its bias already added."""
        formula = {"q15": _q15, "q31": _q31, "logits": _logits}[self.scheme]
        exact = formula(self, accumulator, terms, load, *constants, lanes)
        if self.scheme == "logits":
            return exact
        bounded = _clamp(exact, self.lo, self.hi, "int32" if self.scheme == "q15" else "int64", lanes)
        return bounded.astype(typed(self.dtype, lanes))


def _q15(
    plan: Epilogue,
    accumulator: Expr | None,
    terms: list[Expr],
    load: Load,
    narrow: tirx.Buffer,
    wide: tirx.Buffer,
    lanes: int,
) -> Expr:
    parts = []
    if accumulator is not None:
        shifted = _clamp(accumulator >> load(narrow, 2 * plan.width), -(2**15), 2**15 - 1, "int32", lanes)
        parts.append(_high_multiply(shifted, load(narrow, plan.width), lanes))
    if not terms:
        return parts[0]
    scalars = 3 * plan.width
    for j, term in enumerate(terms):
        scaled = term.astype(typed("int32", lanes)) << splat(7, "int32", lanes)
        parts.append(_high_multiply(scaled, splat(narrow[scalars + j], "int32", lanes), lanes))
    parts.append(splat(narrow[scalars + len(terms)], "int32", lanes))
    return sum(parts[1:], parts[0]) >> splat(3, "int32", lanes)


def _q31(
    plan: Epilogue,
    accumulator: Expr | None,
    terms: list[Expr],
    load: Load,
    narrow: tirx.Buffer,
    wide: tirx.Buffer,
    lanes: int,
) -> Expr:
    int64 = typed("int64", lanes)
    total = load(wide, 0)
    if accumulator is not None:
        shifted = accumulator.astype(int64) << splat(plan.pre_shift, "int64", lanes)
        total = total + shifted * load(narrow, plan.width).astype(int64)
    for j, term in enumerate(terms):
        scaled = term.astype(int64) << splat(8, "int64", lanes)
        total = total + scaled * load(narrow, (2 + j) * plan.width).astype(int64)
    return total >> load(wide, plan.width)


def _logits(
    plan: Epilogue,
    accumulator: Expr,
    terms: list[Expr],
    load: Load,
    narrow: tirx.Buffer,
    wide: tirx.Buffer,
    lanes: int,
) -> Expr:
    scaled = accumulator.astype(typed("int64", lanes)) * load(narrow, plan.width).astype(typed("int64", lanes))
    return ((scaled + load(wide, 0)) >> splat(30, "int64", lanes)).astype(typed("int32", lanes))


def _high_multiply(value: Expr, multiplier: Expr, lanes: int) -> Expr:
    return (value * multiplier + splat(2**14, "int32", lanes)) >> splat(15, "int32", lanes)


def _clamp(value: Expr, lo: int, hi: int, dtype: str, lanes: int) -> Expr:
    return tirx.max(tirx.min(value, splat(hi, dtype, lanes)), splat(lo, dtype, lanes))


def plan_epilogue(
    requant: Requant | LogitScale,
    clamp: Clamp | None,
    bias: np.ndarray,
    terms: tuple[str, ...],
    width: int,
    pre_shift: int = 0,
    unit: str = "int32",
) -> tuple[Epilogue, tuple[np.ndarray, np.ndarray]]:
    """Epilogue of a node and its constants (int32[narrow_size], int64[wide_size]).

    bias: int32[C] that the kernel starts its accumulators with, C <= width; the spare entries are 0.
    """

    def padded(values: np.ndarray, dtype: str) -> np.ndarray:
        # One entry serves every channel; none at all means there is no accumulator.
        spread = np.zeros(width, dtype)
        if len(values) == 1:
            spread[:] = values[0]
        else:
            spread[: len(values)] = values
        return spread

    if isinstance(requant, LogitScale):
        epilogue = Epilogue("logits", True, terms, width, "int32")
        narrow = [padded(bias, "int32"), padded(requant.multiplier, "int32")]
        wide = [padded(requant.rounding, "int64"), np.zeros(width, "int64")]
    elif isinstance(requant, RequantQ15):
        epilogue = Epilogue("q15", requant.channels > 0, terms, width, clamp.dtype, clamp.lo, clamp.hi, unit=unit)
        scalars = np.array([*requant.term_multipliers, requant.offset], "int32")
        narrow = [padded(a, "int32") for a in (bias, requant.multiplier, requant.shift)] + [scalars]
        wide = [np.zeros(2 * width, "int64")]
    else:
        epilogue = Epilogue("q31", requant.channels > 0, terms, width, clamp.dtype, clamp.lo, clamp.hi, pre_shift)
        narrow = [padded(bias, "int32"), padded(requant.multiplier, "int32")]
        narrow += [padded(row, "int32") for row in requant.term_multipliers]
        wide = [padded(requant.rounding, "int64"), padded(requant.shift, "int64")]
    return epilogue, (np.concatenate(narrow), np.concatenate(wide))
