"""Dot units: how one register of int32 accumulators takes its next products, and how operands must be packed for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, Index, shuffled, typed, vector
from intcert.compile.layout import round_up
from intcert.targets import DotUnit, Target

#: Loads so many operands from this one on.
Load = Callable[[int, int], Expr]


def operands_at(buffer: tirx.Buffer, first: Index) -> Load:
    """Operands that lie in a buffer from element ``first`` on."""
    return lambda start, elements: vector(buffer, first + start, elements)


def _vpdpbusd(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """u8 x s8, four products a lane, no saturation (AVX512-VNNI)."""
    return tirx.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", accumulator, activation, weight)


def _vpmaddwd(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """s16 x s16, two products a lane (AVX2); 8-bit operands cannot overflow its 32-bit sums."""
    wide = weight.astype("int16x16")
    return accumulator + tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", activation, wide)


def _sdot(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """s8 x s8, four products a lane (ARMv8.2 FEAT_DotProd). LLVM takes the second operand by lane."""
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", accumulator, weight, activation)


def _usdot(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """u8 x s8, four products a lane (ARMv8.6 FEAT_I8MM)."""
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.usdot.v4i32.v16i8", accumulator, activation, weight)


_UNITS: dict[str, Callable[[Expr, Expr, Expr], Expr]] = {
    "vpdpbusd": _vpdpbusd,
    "vpmaddwd": _vpmaddwd,
    "sdot": _sdot,
    "usdot": _usdot,
}


def _sadalp(accumulator: Expr, products: Expr) -> Expr:
    return accumulator + tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", products)


def _vpadal(accumulator: Expr, products: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.arm.neon.vpadals.v4i32.v8i16", accumulator, products)


#: accumulator + sums of neighbouring int16 products, and whether two products of the unit fit 16 bits.
_PAIR_UNITS: dict[str, tuple[Callable[[Expr, Expr], Expr], bool]] = {
    "smull": (_sadalp, False),
    "smlal": (_sadalp, True),
    "vmull": (_vpadal, False),
    "vmlal": (_vpadal, True),
}


def _dot_pairs(unit: DotUnit, accumulator: Expr, activations: Load, weights: Load, step: int) -> Expr:
    """s8 x s8 to 16 bits, two products a lane and instruction (NEON), for the first and the second pair of a step."""
    accumulate, fused = _PAIR_UNITS[unit.name]
    products = []
    for half in (0, 1):
        if unit.steps > 1:
            words = tirx.reinterpret(typed("int16", 2 * unit.steps), activations(0, unit.steps * unit.depth))
            everywhere = shuffled([words], [2 * step + half] * 4)
        else:
            everywhere = tirx.Broadcast(tirx.reinterpret("int16", activations(2 * half, 2)), 4)
        own = weights(8 * half, 8)
        products.append(tirx.reinterpret("int8x8", everywhere).astype("int16x8") * own.astype("int16x8"))
    if fused:
        return accumulate(accumulator, products[0] + products[1])
    return accumulate(accumulate(accumulator, products[0]), products[1])


def _dot_matrices(accumulator: Expr, activations: list[Expr], weights: Expr, step: int) -> Expr:
    """u8 x s8, eight products of two pixels with two channels (ARMv8.6 FEAT_I8MM)."""
    own = shuffled(activations, [16 * row + 8 * step + i for row in range(2) for i in range(8)])
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.usmmla.v4i32.v16i8", accumulator, own, weights)


def dot_unit(target: Target, weight: np.ndarray, pixels: int = 1) -> DotUnit:
    """The target's unit for these weights, int8[O, KH, KW, I], and a row of so many pixels."""
    unit, matrix, inner = target.dot, target.matrix, weight.shape[-1]
    if matrix and pixels >= matrix.rows and round_up(inner, matrix.depth) == round_up(inner, unit.depth):
        return matrix
    return unit.full_range if unit.full_range and weight.min() == -128 else unit


def dot(unit: DotUnit, accumulator: Expr, rows: list[Load], weights: Load, step: int) -> Expr:
    """accumulator + products of a step.

    rows: one for each of the unit's pixels, loads from ``steps`` steps of ``depth`` consecutive activations each;
    weights: loads from this step's.
    """
    if unit.rows > 1:
        loaded = [activations(0, unit.steps * unit.depth) for activations in rows]
        return _dot_matrices(accumulator, loaded, weights(0, unit.channels * unit.depth), step)
    (activations,) = rows
    if unit.pairs:
        return _dot_pairs(unit, accumulator, activations, weights, step)
    words = tirx.reinterpret(typed("int32", unit.steps), activations(0, unit.steps * unit.depth))
    everywhere = shuffled([words], [step] * unit.lanes) if unit.steps > 1 else tirx.Broadcast(words, unit.lanes)
    register = typed(unit.activation, unit.lanes * unit.depth)
    return dot_registers(unit, accumulator, tirx.reinterpret(register, everywhere), weights(0, unit.lanes * unit.depth))


def dot_registers(unit: DotUnit, accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
    """accumulator + products, where every lane has ``depth`` activations of its own."""
    return _UNITS[unit.name](accumulator, activations, weights)


def activation_offset(unit: DotUnit, dtype: str) -> int:
    """What staging adds to an activation of this dtype where the unit's 8-bit operand has the other sign."""
    return {("uint8", "int8"): 128, ("int8", "uint8"): -128}.get((unit.activation, dtype), 0)


def wrapped_bias(unit: DotUnit, bias: np.ndarray, weight: np.ndarray, dtype: str) -> np.ndarray:
    """int32[O]: what accumulators start with, less what the offset of the activations adds to their sums.

    Modulo 2**32: sums that wrap on the way are exact once every product is in. weight: int8[O, ...].
    """
    added = activation_offset(unit, dtype) * weight.astype(np.int64).reshape(len(weight), -1).sum(1)
    return ((bias - added) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def pack_weights(unit: DotUnit, weight: np.ndarray, blocks: int = 1) -> np.ndarray:
    """int8[O, ..., K] to unit.weight[O / channels / blocks, ..., K / depth, blocks, channels * depth].

    blocks: registers of output channels that are read together; O and K are already padded.
    """
    outputs, *middle, inner = weight.shape
    together = blocks * unit.channels
    split = weight.reshape(outputs // together, together, *middle, inner // unit.depth, unit.depth)
    packed = np.moveaxis(split, 1, -2)
    packed = packed.reshape(*packed.shape[:-2], blocks, unit.channels, unit.depth)
    if unit.pairs:
        packed = np.swapaxes(packed.reshape(*packed.shape[:-1], unit.depth // 2, 2), -3, -2)
    flat = packed.reshape(outputs // together, *middle, -1, blocks, unit.channels * unit.depth)
    return np.ascontiguousarray(flat).astype(unit.weight)
