"""Dot units: how one register of int32 accumulators takes its next products, and how operands must be packed for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx

from intcert.compile.kernels.base import Expr
from intcert.targets import DotUnit


def _vpdpbusd(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """u8 x s8, four products a lane, no saturation (AVX512-VNNI)."""
    return tirx.call_llvm_pure_intrin(
        "int32x16", "llvm.x86.avx512.vpdpbusd.512", accumulator, tirx.reinterpret("uint8x64", activation), weight
    )


def _vpmaddwd(accumulator: Expr, activation: Expr, weight: Expr) -> Expr:
    """s16 x s16, two products a lane (AVX2); 8-bit operands cannot overflow its 32-bit sums."""
    return accumulator + tirx.call_llvm_pure_intrin(
        "int32x8", "llvm.x86.avx2.pmadd.wd", tirx.reinterpret("int16x16", activation), weight
    )


_UNITS: dict[str, Callable[[Expr, Expr, Expr], Expr]] = {"vpdpbusd": _vpdpbusd, "vpmaddwd": _vpmaddwd}


def dot(unit: DotUnit, accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
    """accumulator + products. activations: ``depth`` consecutive elements; weights: ``lanes * depth`` elements."""
    return dot_registers(unit, accumulator, tirx.Broadcast(tirx.reinterpret("int32", activations), unit.lanes), weights)


def dot_registers(unit: DotUnit, accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
    """accumulator + products, where every lane has ``depth`` activations of its own."""
    return _UNITS[unit.name](accumulator, activations, weights)


def activation_offset(unit: DotUnit, dtype: str) -> int:
    """What staging adds to an activation of this dtype: a unit with an unsigned side takes int8 as a + 128."""
    return 128 if unit.activation == "uint8" and dtype == "int8" else 0


def wrapped_bias(unit: DotUnit, bias: np.ndarray, weight: np.ndarray, dtype: str) -> np.ndarray:
    """int32[O]: what accumulators start with, less what the offset of the activations adds to their sums.

    Modulo 2**32: sums that wrap on the way are exact once every product is in. weight: int8[O, ...].
    """
    added = activation_offset(unit, dtype) * weight.astype(np.int64).reshape(len(weight), -1).sum(1)
    return ((bias - added) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def pack_weights(unit: DotUnit, weight: np.ndarray) -> np.ndarray:
    """int8[O, ..., K] to unit.weight[O / lanes, ..., K / depth, lanes, depth]; O and K are already padded."""
    outputs, *middle, inner = weight.shape
    split = weight.reshape(outputs // unit.lanes, unit.lanes, *middle, inner // unit.depth, unit.depth)
    return np.ascontiguousarray(np.moveaxis(split, 1, -2)).astype(unit.weight)
