"""Both requantization schemes on NEON, in registers that narrow with the result: docs/arithmetic.md's very integers.

A saturating narrowing is a clamp to the narrower type; as each type holds the next one, a chain of them is one clamp.
``sqrdmulh`` is ``sat16((2 v M + 2^15) >> 16)``, which is ``(v M + 2^14) >> 15`` unless v = M = -32768, and M is
positive. ``sshl`` by a negative number of bits is an arithmetic shift to the right that rounds down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx

from intcert.compile.kernels.base import Expr, joined, part, shuffled, splat, typed

if TYPE_CHECKING:
    from intcert.compile.kernels.epilogue import Epilogue, Load

REGISTERS = 4  # int32x4 that fill one register of bytes
LANES = 4


@dataclass(frozen=True)
class _Instructions:
    """LLVM's names of one architecture's instructions, and how it wants a constant shift to the right."""

    shift: str
    narrow: dict[str, str]  # by the stored dtype, saturating
    shift_narrow: dict[str, str]  # the same after a shift to the right
    round_narrow: dict[str, str]  # the same, rounding half up
    high_multiply: str
    negative_vector: bool

    def by(self, bits: int) -> Expr:
        return splat(-bits, "int16", 8) if self.negative_vector else tirx.const(bits, "int32")


_INSTRUCTIONS = {
    "sqrdmulh": _Instructions(
        shift="aarch64.neon.sshl",
        narrow={"int8": "aarch64.neon.sqxtn", "uint8": "aarch64.neon.sqxtun"},
        shift_narrow={"int8": "aarch64.neon.sqshrn", "uint8": "aarch64.neon.sqshrun"},
        round_narrow={"int8": "aarch64.neon.sqrshrn", "uint8": "aarch64.neon.sqrshrun"},
        high_multiply="aarch64.neon.sqrdmulh",
        negative_vector=False,
    ),
    "vqrdmulh": _Instructions(
        shift="arm.neon.vshifts",
        narrow={"int8": "arm.neon.vqmovns", "uint8": "arm.neon.vqmovnsu"},
        shift_narrow={"int8": "arm.neon.vqshiftns", "uint8": "arm.neon.vqshiftnsu"},
        round_narrow={"int8": "arm.neon.vqrshiftns", "uint8": "arm.neon.vqrshiftnsu"},
        high_multiply="arm.neon.vqrdmulh",
        negative_vector=True,
    ),
}
UNITS = tuple(_INSTRUCTIONS)


def packed_result(
    plan: Epilogue,
    accumulators: list[Expr] | None,
    terms: list[Expr],
    loads: list[Load],
    constants: tuple[tirx.Buffer, tirx.Buffer],
) -> Expr:
    """8-bit vector of 4 channels a register, for 1, 2 or 4 registers.

    accumulators: int32x4 each, bias added; terms: 8-bit vectors as long as the result; loads: one a register.
    """
    formula = {"q15": _q15, "q31": _q31}[plan.scheme]
    bytes_ = formula(plan, _INSTRUCTIONS[plan.unit], accumulators, terms, loads, *constants)
    lanes = LANES * len(loads)
    least, most = {"uint8": (0, 255), "int8": (-128, 127)}[plan.dtype]
    if plan.lo > least:
        bytes_ = tirx.max(bytes_, splat(plan.lo, plan.dtype, lanes))
    if plan.hi < most:
        bytes_ = tirx.min(bytes_, splat(plan.hi, plan.dtype, lanes))
    return bytes_


def _q15(
    plan: Epilogue,
    use: _Instructions,
    accumulators: list[Expr] | None,
    terms: list[Expr],
    loads: list[Load],
    narrow: tirx.Buffer,
    wide: tirx.Buffer,
) -> Expr:
    lanes = LANES * len(loads)
    parts = []
    if accumulators is not None:
        words = []
        for accumulator, load in zip(accumulators, loads, strict=True):
            right = splat(0, "int32", LANES) - load(narrow, 2 * plan.width)
            shifted = _call("int32", LANES, use.shift, accumulator, right)
            words.append(_call("int16", LANES, use.narrow["int8"], shifted))
        multipliers = [load(narrow, plan.width).astype(typed("int16", LANES)) for load in loads]
        parts.append(_high_multiply(use, joined(words), joined(multipliers), lanes))
    if not terms:
        return _to_bytes(plan, use.narrow, parts[0], lanes)
    scalars = 3 * plan.width
    for j, term in enumerate(terms):
        scaled = term.astype(typed("int16", lanes)) << splat(7, "int16", lanes)
        parts.append(_high_multiply(use, scaled, _everywhere(narrow[scalars + j], lanes), lanes))
    if accumulators is None:
        # The constant includes the rounding, and takes the place of a bias.
        parts.append(_everywhere(narrow[scalars + len(terms)], lanes))
    names = use.shift_narrow if accumulators is None else use.round_narrow
    return _to_bytes(plan, names, sum(parts[1:], parts[0]), lanes, use.by(3))


def _q31(
    plan: Epilogue,
    use: _Instructions,
    accumulators: list[Expr] | None,
    terms: list[Expr],
    loads: list[Load],
    narrow: tirx.Buffer,
    wide: tirx.Buffer,
) -> Expr:
    words = []
    for q, load in enumerate(loads):
        total = load(wide, 0)
        if accumulators is not None:
            total = total + accumulators[q].astype("int64x4") * load(narrow, plan.width).astype("int64x4")
        for j, term in enumerate(terms):
            scaled = part(term, LANES * q, LANES).astype("int32x4") << splat(8, "int32", LANES)
            total = total + scaled.astype("int64x4") * load(narrow, (2 + j) * plan.width).astype("int64x4")
        shifted = total >> load(wide, plan.width)
        halves = [_call("int32", 2, use.narrow["int8"], part(shifted, start, 2)) for start in (0, 2)]
        words.append(_call("int16", LANES, use.narrow["int8"], joined(halves)))
    return _to_bytes(plan, use.narrow, joined(words), LANES * len(loads))


def _to_bytes(plan: Epilogue, names: dict[str, str], words: Expr, lanes: int, *shift: Expr) -> Expr:
    """8-bit vector of an int16 vector, saturated to the stored dtype; eight lanes an instruction."""
    if lanes < 8:
        words = shuffled([words, words], range(8))
    parts = [part(words, start, 8) for start in range(0, max(lanes, 8), 8)]
    bytes_ = joined([_call(plan.dtype, 8, names[plan.dtype], eight, *shift) for eight in parts])
    return bytes_ if lanes >= 8 else part(bytes_, 0, lanes)


def _high_multiply(use: _Instructions, value: Expr, multiplier: Expr, lanes: int) -> Expr:
    """(value * multiplier + 2^14) >> 15, int16."""
    width = min(lanes, 8)
    return joined(
        [
            _call("int16", width, use.high_multiply, part(value, start, width), part(multiplier, start, width))
            for start in range(0, lanes, width)
        ]
    )


def _everywhere(value: Expr, lanes: int) -> Expr:
    return splat(value.astype("int16"), "int16", lanes)


def _call(dtype: str, lanes: int, name: str, *operands: Expr) -> Expr:
    """An intrinsic that LLVM distinguishes by its result."""
    bits = dtype.removeprefix("u").removeprefix("int")
    return tirx.call_llvm_pure_intrin(typed(dtype, lanes), f"llvm.{name}.v{lanes}i{bits}", *operands)
