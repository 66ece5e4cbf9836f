"""What a target's dot unit reaches with its operands in registers: the yardstick of bench/layers.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import local, loop, store, vector
from intcert.compile.kernels.dot import dot, operands_at
from intcert.compile.kernels.tiles import configuration, configure, multiply_tiles, release, require_permission
from intcert.compile.library import tvm_target
from intcert.targets import Target

STEPS = 1000
BLOCKS = 4  # registers of weights in the yardstick's tile


@dataclass(frozen=True)
class Peak:
    """A timed loop: run does ``multiply_adds`` of them with the instruction ``name``."""

    name: str
    multiply_adds: int
    run: Callable[[], object]


def unit_peak(target: Target) -> Peak:
    """The loop for a target's strongest unit, compiled for this machine, which must be one."""
    return _tile_peak(target) if target.tile else _dot_peak(target)


def _tile_peak(target: Target) -> Peak:
    unit, sums = target.tile, 4

    def body(config: tirx.Buffer) -> None:
        configure(config)
        with loop(STEPS):
            for tile in range(sums):
                multiply_tiles(tile, sums + tile // 2, sums + 2 + tile % 2, "uint8")
        release()

    content = configuration(unit, sums, 2, unit.rows)
    run = _compiled(target, [content], body)
    return Peak(unit.name, STEPS * sums * unit.rows * unit.columns * unit.depth, run)


def _dot_peak(target: Target) -> Peak:
    unit = target.dot
    columns = unit.accumulators // BLOCKS
    packed = unit.lanes * unit.depth

    def body(activations: tirx.Buffer, weights: tirx.Buffer, out: tirx.Buffer) -> None:
        accumulators = local(columns * BLOCKS * unit.lanes, "int32")
        tile = [(c, b, (c * BLOCKS + b) * unit.lanes) for c in range(columns) for b in range(BLOCKS)]
        for _, _, slot in tile:
            store(accumulators, slot, vector(out, slot, unit.lanes), unit.lanes)
        with loop(STEPS) as i:
            for c, b, slot in tile:
                # The operand moves, or the compiler would do the work once.
                activation = operands_at(activations, (i % 8 + c) * unit.depth)
                value = dot(
                    unit,
                    vector(accumulators, slot, unit.lanes),
                    [activation],
                    operands_at(weights, b * packed),
                    step=0,
                )
                store(accumulators, slot, value, unit.lanes)
        for _, _, slot in tile:
            store(out, slot, vector(accumulators, slot, unit.lanes), unit.lanes)

    arrays = [
        np.zeros((8 + columns + unit.steps) * unit.depth, unit.activation),
        np.zeros(BLOCKS * packed, unit.weight),
        np.zeros(columns * BLOCKS * unit.lanes, np.int32),
    ]
    return Peak(unit.name, STEPS * columns * BLOCKS * packed, _compiled(target, arrays, body))


def _compiled(target: Target, arrays: list[np.ndarray], body: Callable[..., None]) -> Callable[[], object]:
    """A call of a function over these arrays; body writes it, given their buffers."""
    with IRBuilder() as ib, tb.prim_func():
        tb.func_name("peak")
        tb.func_attr({"global_symbol": "peak", "tirx.noalias": True})
        buffers = [
            tb.match_buffer(tb.arg(f"a{i}", tb.handle()), array.shape, str(array.dtype))
            for i, array in enumerate(arrays)
        ]
        if target.tile:
            require_permission(target.tile.permission, "the system refuses tiles to this process")
        body(*buffers)
    function = tvm.compile(ib.get(), tvm_target(target))["peak"]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    return lambda: function(*tensors)
