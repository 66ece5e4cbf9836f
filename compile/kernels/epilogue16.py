"""The q15 epilogue in 16-bit lanes (AVX-512BW): the very integers of docs/arithmetic.md, four registers at a time.

Saturating packs interleave their operands by 128-bit lanes: after both packs, the dword of register q and lane l is
number 4 l + q. One dword permutation, its own inverse, brings a result into memory order, or a stored term out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from intcert.compile.kernels.base import Expr, shuffled, splat

if TYPE_CHECKING:
    from intcert.compile.kernels.epilogue import Epilogue, Load

REGISTERS = 4  # int32x16 that fill one register of bytes
LANES = 16
_STORED = {"uint8": (0, 255, "packuswb"), "int8": (-128, 127, "packsswb")}
_TRANSPOSED = [16 * lane + 4 * q + i for q in range(4) for lane in range(4) for i in range(4)]  # as bytes


def packed_result(
    plan: Epilogue,
    accumulators: list[Expr] | None,
    terms: list[Expr],
    loads: list[Load],
    constants: tuple[tirx.Buffer, tirx.Buffer],
) -> Expr:
    """8-bit vector of 16 channels a register, for 1, 2 or 4 registers.

    accumulators: int32x16 each, bias added; terms: 8-bit vectors as long as the result; loads: one a register.
    """
    count = len(loads)
    halves = [_half(plan, accumulators, terms, half, loads, constants[0]) for half in range(-(-count // 2))]
    least, most, pack = _STORED[plan.dtype]
    bytes_ = _intrinsic(f"{plan.dtype}x64", f"{pack}.512", *halves, *[splat(0, "int16", 32)] * (2 - len(halves)))
    if plan.lo > least:
        bytes_ = tirx.max(bytes_, splat(plan.lo, plan.dtype, 64))
    if plan.hi < most:
        bytes_ = tirx.min(bytes_, splat(plan.hi, plan.dtype, 64))
    return shuffled([bytes_], _TRANSPOSED[: LANES * count])


def _half(
    plan: Epilogue,
    accumulators: list[Expr] | None,
    terms: list[Expr],
    half: int,
    loads: list[Load],
    narrow: tirx.Buffer,
) -> Expr:
    """int16x32 of one or two registers, interleaved by lanes, not yet clamped."""
    count, here = len(loads), slice(2 * half, 2 * half + 2)
    parts = []
    if accumulators is not None:
        shifted = [a >> load(narrow, 2 * plan.width) for a, load in zip(accumulators[here], loads[here], strict=True)]
        parts.append(_high_multiply(_pack32(shifted), _pack32([load(narrow, plan.width) for load in loads[here]])))
    if not terms:
        return parts[0]
    scalars = 3 * plan.width
    for j, (term, dtype) in enumerate(zip(terms, plan.terms, strict=True)):
        parts.append(_high_multiply(_widened(term, dtype, count, half), _broadcast(narrow[scalars + j])))
    if accumulators is None:
        parts.append(_broadcast(narrow[scalars + len(terms)] - 4))
    # (x + 4) >> 3, as one more rounding multiplication.
    return _high_multiply(sum(parts[1:], parts[0]), splat(1 << 12, "int16", 32))


def _pack32(registers: list[Expr]) -> Expr:
    """int16x32 of one or two int32x16, saturated."""
    return _intrinsic("int16x32", "packssdw.512", *registers, *[splat(0, "int32", LANES)] * (2 - len(registers)))


def _widened(term: Expr, dtype: str, count: int, half: int) -> Expr:
    """int16x32: stored elements << 7 of registers 2 half and 2 half + 1, interleaved as the packs do."""
    indices = [i % (LANES * count) for i in _TRANSPOSED]
    transposed = shuffled([term] * (REGISTERS // count), indices)
    # A zero byte below each element makes it a word << 8.
    here = [16 * lane + 8 * half + i for lane in range(4) for i in range(8)]
    bytes_ = shuffled([splat(0, dtype, 64), transposed], [i for position in here for i in (position, 64 + position)])
    word = "uint16" if dtype == "uint8" else "int16"
    return tirx.reinterpret("int16x32", tirx.reinterpret(f"{word}x32", bytes_) >> splat(1, word, 32))


def _high_multiply(value: Expr, multiplier: Expr) -> Expr:
    """(value * multiplier + 2^14) >> 15."""
    return _intrinsic("int16x32", "pmul.hr.sw.512", value, multiplier)


def _broadcast(value: Expr) -> Expr:
    return splat(value.astype("int16"), "int16", 32)


def _intrinsic(dtype: str, name: str, *operands: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.x86.avx512.{name}", *operands)
