"""What the cost model sees of a candidate: the work that its schedule makes, counted without building it."""

from __future__ import annotations

from functools import singledispatch
from math import prod

import numpy as np

from intcert.compile.kernels import Schedule
from intcert.compile.kernels.conv2d import Tile
from intcert.compile.kernels.cuda.conv2d import windows_of
from intcert.compile.kernels.cuda.tile import MmaTile
from intcert.compile.kernels.depthwise import DepthwiseTile
from intcert.compile.kernels.dot import dot_unit
from intcert.compile.kernels.geometry import conv_geometry
from intcert.compile.kernels.tile_plan import LOAD, TiledConv, TilePlan, folded
from intcert.compile.layer import Layer
from intcert.compile.layout import round_up

#: All counts are of one image. Loads of activations are told apart by their alignment in bytes.
NAMES = (
    "products", "weight_loads", *(f"loads_{bytes_}" for bytes_ in LOAD), "stores", "blocks", "steps", "sums",
    "rows", "columns", "outputs", "images", "fold", "channels_first", "unrolled", "whole", "staged_bytes",
    "weight_bytes", "terms", "batch", "estimate", "copies", "depth", "row_warps", "stages",
)  # fmt: skip


def features(layer: Layer, schedule: Schedule) -> np.ndarray:
    """Features of a candidate, float32[len(NAMES)]; 0 for what its family does not have."""
    common = {"terms": len(layer.inputs) - 1, "batch": layer.batch}
    counted = common | _count(schedule, layer)
    return np.array([counted.get(name, 0) for name in NAMES], np.float32)


@singledispatch
def _count(schedule: Schedule, layer: Layer) -> dict[str, float]:
    raise TypeError(f"{type(schedule).__name__} has no features")


@_count.register
def _(plan: TilePlan, layer: Layer) -> dict[str, float]:
    geometry, _, _ = conv_geometry(layer.node, layer.inputs[0], layer.result, layer.batch)
    tiled = TiledConv(layer.target.tile, folded(geometry, plan.fold), plan)
    blocks = prod(tiled.blocks) * geometry.batch / plan.images / layer.batch
    steps = blocks * tiled.reduction.length
    return {
        "products": steps * plan.sums,
        "weight_loads": steps * plan.outputs,
        f"loads_{tiled.alignment}": steps * plan.positions,
        "stores": blocks * plan.sums,
        "blocks": blocks,
        "steps": tiled.reduction.length,
        "sums": plan.sums,
        "rows": plan.rows,
        "columns": plan.columns,
        "outputs": plan.outputs,
        "images": plan.images,
        "fold": plan.fold,
        "channels_first": plan.channels_first,
        "unrolled": plan.unrolled,
        "whole": plan.whole,
        "staged_bytes": tiled.staging.bytes / plan.images if tiled.staging else 0,
        "weight_bytes": tiled.weight_bytes,
        "estimate": tiled.cycles,
    }


@_count.register
def _(tile: Tile, layer: Layer) -> dict[str, float]:
    geometry, weight, _ = conv_geometry(layer.node, layer.inputs[0], layer.result, layer.batch)
    unit, result = dot_unit(layer.target, weight), geometry.result
    registers = result.stride // unit.lanes
    blocks = -(-registers // tile.blocks) * result.height * -(-result.width // tile.columns)
    blocks *= geometry.batch / layer.batch
    steps = prod(weight.shape[1:3]) * round_up(weight.shape[3], unit.depth) // unit.depth
    return {
        "products": blocks * steps * tile.columns * tile.blocks,
        "weight_loads": blocks * steps * tile.blocks,
        "loads_4": blocks * steps * tile.columns,
        "stores": blocks * tile.columns * tile.blocks,
        "blocks": blocks,
        "steps": steps,
        "sums": tile.columns * tile.blocks,
        "columns": tile.columns,
        "outputs": tile.blocks,
        "channels_first": tile.channels_first,
        "weight_bytes": registers * steps * unit.lanes * unit.depth,
    }


@_count.register
def _(tile: DepthwiseTile, layer: Layer) -> dict[str, float]:
    blocks = (
        layer.result.height * -(-layer.result.width // tile.columns) * layer.result.stride // layer.target.dot.lanes
    )
    steps = prod(layer.node.weight.shape[1:3])
    return {
        "products": blocks * steps * tile.columns,
        "weight_loads": blocks * steps,
        "stores": blocks * tile.columns,
        "blocks": blocks,
        "steps": steps,
        "sums": tile.columns,
        "columns": tile.columns,
    }


@_count.register
def _(tile: MmaTile, layer: Layer) -> dict[str, float]:
    windows = windows_of(layer.node, layer.inputs[0], layer.result)
    rows = layer.batch * layer.result.height * layer.result.width
    blocks = -(-rows // tile.rows) * -(-layer.result.stride // tile.columns) / layer.batch
    slices = -(-windows.inner // tile.depth)
    return {
        "products": blocks * slices * tile.rows * tile.columns * tile.depth,
        "weight_loads": blocks * slices * tile.columns * tile.depth,
        "copies": blocks * slices * tile.copies(windows.granule),
        "stores": blocks * tile.rows * tile.columns,
        "blocks": blocks,
        "steps": slices,
        "sums": prod(tile.warp),
        "rows": tile.rows,
        "columns": tile.columns,
        "depth": tile.depth,
        "row_warps": tile.row_warps,
        "stages": tile.stages,
        "staged_bytes": tile.shared_bytes,
    }
