"""Words for a tile unit (AMX): its configuration, its instructions, and how weights must be packed for it."""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import Expr, Index
from intcert.targets import TileUnit

WORD = 4  # bytes that one int32 lane multiplies at a time
TILE_BYTES = 1024
_PRODUCT = {"uint8": "llvm.x86.tdpbusd", "int8": "llvm.x86.tdpbssd"}


def require_permission(permission: tuple[int, ...], message: str) -> None:
    """Emit the system call that allows tiles to this process; where it does not return 0, the function fails."""
    answer = tirx.call_extern("int64", "syscall", *map(_i64, permission))
    with tb.Assert(answer == 0, message):
        pass


def configuration(unit: TileUnit, sums: int, activations: int, rows: int) -> np.ndarray:
    """The 64 bytes of ldtilecfg (Intel SDM, LDTILECFG): ``sums`` accumulator tiles, then ``activations`` tiles, of
    ``rows`` rows; the rest hold weights and have as many rows as words fit the depth."""
    config = np.zeros(64, np.uint8)
    config[0] = 1  # palette
    for tile in range(unit.registers):
        config[16 + 2 * tile] = unit.depth  # bytes a row, the low half of a 16-bit field
        config[48 + tile] = rows if tile < sums + activations else unit.depth // WORD
    return config


def configure(config: tirx.Buffer) -> None:
    """Emit the change of configuration, which zeroes all tiles."""
    _instruction("llvm.x86.ldtilecfg", tirx.address_of(config[0]))


def release() -> None:
    """Emit the return to the state without tiles."""
    _instruction("llvm.x86.tilerelease")


def load_tile(tile: int, buffer: tirx.Buffer, start: Index, stride: int) -> None:
    """Emit the load of a tile whose rows lie ``stride`` bytes apart; 0 repeats one row."""
    _instruction("llvm.x86.tileloadd64", _tile(tile), tirx.address_of(buffer[start]), _i64(stride))


def store_tile(tile: int, buffer: tirx.Buffer, start: Index, stride: int) -> None:
    """Emit the store of a tile, rows ``stride`` bytes apart."""
    _instruction("llvm.x86.tilestored64", _tile(tile), tirx.address_of(buffer[start]), _i64(stride))


def multiply_tiles(sums: int, activations: int, weights: int, dtype: str) -> None:
    """Emit sums += activations * weights; dtype: of the activations."""
    _instruction(_PRODUCT[dtype], _tile(sums), _tile(activations), _tile(weights))


def pack_tiles(unit: TileUnit, weight: np.ndarray) -> np.ndarray:
    """int8[O, ..., K] to int8[O / columns, ..., K / depth, depth / 4, columns, 4]; O and K are already padded."""
    outputs, *middle, inner = weight.shape
    words = unit.depth // WORD
    split = weight.reshape(outputs // unit.columns, unit.columns, *middle, inner // unit.depth, words, WORD)
    return np.ascontiguousarray(np.moveaxis(split, 1, -2))


def _instruction(name: str, *operands: Expr) -> None:
    tb.evaluate(tirx.call_llvm_intrin("void", name, *operands))


def _tile(number: int) -> Expr:
    return tirx.const(number, "int8")


def _i64(value: int) -> Expr:
    return tirx.const(value, "int64")
