"""Dot units: how one register of int32 accumulators takes its next products, and how operands must be packed for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr, typed
from intcert.targets import DotUnit, Target

#: accumulator, activations, weights to the new accumulator.
Unit = Callable[[Expr, Expr, Expr], Expr]


def _vpdpbusd(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """u8 x s8, four products a lane, no saturation (AVX512-VNNI)."""
    return tirx.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", accumulator, activation, weight)


def _vpmaddwd(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """s16 x s16, two products a lane (AVX2); 8-bit operands cannot overflow its 32-bit sums."""
    return accumulator + tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", activation, weight)


def _sdot(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """s8 x s8, four products a lane (ARMv8.2 FEAT_DotProd)."""
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", accumulator, activation, weight)


def _usdot(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """u8 x s8, four products a lane (ARMv8.6 FEAT_I8MM)."""
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.usdot.v4i32.v16i8", accumulator, activation, weight)


def _in_pairs(accumulate: Callable[[Expr, Expr], Expr], fused: bool) -> Unit:
    """s8 x s8 to 16 bits (NEON): two pairs of products a lane, summed to 32 bits by ``accumulate``, together or alone.

    The activation holds the same four bytes in every lane; the weight has the first pairs of all lanes in its low half.
    """

    def unit(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
        pairs = tirx.reinterpret("int16x8", activation)
        products = []
        for half in (0, 1):
            operand = tirx.reinterpret("int8x8", _shuffled(pairs, [half] * 4))
            own = _shuffled(weight, list(range(8 * half, 8 * half + 8)))
            products.append(operand.astype("int16x8") * own.astype("int16x8"))
        if fused:
            return accumulate(accumulator, products[0] + products[1])
        return accumulate(accumulate(accumulator, products[0]), products[1])

    return unit


def _sadalp(accumulator: Expr, products: Expr) -> Expr:
    return accumulator + tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", products)


def _vpadal(accumulator: Expr, products: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.arm.neon.vpadals.v4i32.v8i16", accumulator, products)


_UNITS: dict[str, Unit] = {
    "vpdpbusd": _vpdpbusd,
    "vpmaddwd": _vpmaddwd,
    "sdot": _sdot,
    "usdot": _usdot,
    "smlal": _in_pairs(_sadalp, fused=True),
    "smull": _in_pairs(_sadalp, fused=False),
    "vmlal": _in_pairs(_vpadal, fused=True),
    "vmull": _in_pairs(_vpadal, fused=False),
}


def dot_unit(target: Target, weight: np.ndarray) -> DotUnit:
    """The target's unit for these weights, int8 of any shape."""
    unit = target.dot
    return unit.full_range if unit.full_range and weight.min() == -128 else unit


def dot(unit: DotUnit, accumulator: Expr, activations: Expr, weights: Expr, step: int = 0) -> Expr:
    """accumulator + products. activations: of ``steps`` steps, ``depth`` each; weights: ``lanes * depth`` elements."""
    words = tirx.reinterpret(typed("int32", unit.steps), activations)
    everywhere = _shuffled(words, [step] * unit.lanes) if unit.steps > 1 else tirx.Broadcast(words, unit.lanes)
    return dot_registers(unit, accumulator, tirx.reinterpret(_register(unit), everywhere), weights)


def dot_registers(unit: DotUnit, accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
    """accumulator + products, where every lane has ``depth`` activations of its own."""
    return _UNITS[unit.name](accumulator, activations, weights)


def _register(unit: DotUnit) -> str:
    return typed(unit.activation, unit.lanes * unit.depth)


def _shuffled(values: Expr, indices: list[int]) -> Expr:
    return tirx.Shuffle([values], [tirx.const(i, "int32") for i in indices])


def activation_offset(unit: DotUnit, dtype: str) -> int:
    """What staging adds to an activation of this dtype where the unit's 8-bit operand has the other sign."""
    return {("uint8", "int8"): 128, ("int8", "uint8"): -128}.get((unit.activation, dtype), 0)


def wrapped_bias(unit: DotUnit, bias: np.ndarray, weight: np.ndarray, dtype: str) -> np.ndarray:
    """int32[O]: what accumulators start with, less what the offset of the activations adds to their sums.

    Modulo 2**32: sums that wrap on the way are exact once every product is in. weight: int8[O, ...].
    """
    added = activation_offset(unit, dtype) * weight.astype(np.int64).reshape(len(weight), -1).sum(1)
    return ((bias - added) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def pack_weights(unit: DotUnit, weight: np.ndarray) -> np.ndarray:
    """int8[O, ..., K] to unit.weight[O / lanes, ..., K / depth, lanes * depth]; O and K are already padded."""
    outputs, *middle, inner = weight.shape
    split = weight.reshape(outputs // unit.lanes, unit.lanes, *middle, inner // unit.depth, unit.depth)
    packed = np.moveaxis(split, 1, -2)
    if unit.pairs:
        packed = np.swapaxes(packed.reshape(*packed.shape[:-1], unit.depth // 2, 2), -3, -2)
    return np.ascontiguousarray(packed.reshape(*split.shape[:1], *middle, -1, unit.lanes * unit.depth)).astype(
        unit.weight
    )
