"""The tile that a block of the matrix product makes: the one that is taken by default, and all others.

What is fast depends on the number of multiprocessors and on latencies that no document gives, so that the default is a
rule of thumb; ``intcert tune`` measures the others on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from intcert.compile.kernels.base import Schedule
from intcert.compile.kernels.cuda.mma import CHUNK, LANES, ROWS
from intcert.compile.layout import round_up
from intcert.targets import CudaTarget

WARPS = 4
_MOST_SUMS = 128  # of a lane, which has 255 registers at most
_MOST_COPIES = 16  # of A by a thread, a slice: each takes three registers for as long as the block lives
_WIDEST_WARP = 64  # columns: a lane stores a quarter of them, at most 16 bytes, at once
_ROWS, _COLUMNS, _DEPTHS, _ROW_WARPS, _STAGES = (64, 128, 256), (16, 32, 64, 128), (32, 64, 128), (1, 2, 4), (2, 3, 4)


@dataclass(frozen=True)
class MmaTile(Schedule):
    """What a block makes at a time: rows x columns sums, from slices of ``depth`` bytes.

    row_warps: warps side by side in the rows, of four in all; stages: slices in shared memory at a time, the one that
    is multiplied among them.
    """

    rows: int
    columns: int
    depth: int
    row_warps: int
    stages: int

    @property
    def column_warps(self) -> int:
        """Warps side by side in the columns."""
        return WARPS // self.row_warps

    @property
    def warp(self) -> tuple[int, int]:
        """Rows and columns of one warp."""
        return self.rows // self.row_warps, self.columns // self.column_warps

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory of a block."""
        return self.stages * (self.rows + self.columns) * self.depth

    def copies(self, granule: int) -> int:
        """How many times a thread copies ``granule`` bytes of A for a slice."""
        return self.rows * self.depth // (granule * WARPS * LANES)


def choose_tile(inner: int, channels: int, target: CudaTarget) -> MmaTile:
    """Tile for a window of ``inner`` bytes and so many stored output channels.

    Columns divide the channels, so that none is computed twice; slices are as deep as wastes nothing, since deeper ones
    need fewer barriers.
    """
    depth = min((64, 32), key=lambda size: (round_up(inner, size), -size))
    if channels % 128 == 0 and inner >= 256:
        return MmaTile(128, 128, depth, 2, target.stages)
    columns = next(size for size in (64, 32, 16) if channels % size == 0)
    return MmaTile(128, columns, depth, WARPS, target.stages)


def tiles_for(inner: int, channels: int, granule: int, target: CudaTarget) -> tuple[MmaTile, ...]:
    """All tiles that a convolution can have, ``choose_tile``'s first. granule: bytes of A that are copied at once."""
    default = choose_tile(inner, channels, target)
    stages = _STAGES if target.async_copy else (target.stages,)
    every = (MmaTile(*values) for values in product(_ROWS, _COLUMNS, _DEPTHS, _ROW_WARPS, stages))
    return tuple(dict.fromkeys((default, *(t for t in every if _fits(t, inner, channels, granule, target)))))


def _fits(tile: MmaTile, inner: int, channels: int, granule: int, target: CudaTarget) -> bool:
    rows, columns = tile.warp
    return (
        channels % tile.columns == 0
        and rows % ROWS == 0
        and CHUNK <= columns <= _WIDEST_WARP
        and rows * columns <= _MOST_SUMS * LANES
        and tile.shared_bytes <= target.shared_memory
        and 1 <= tile.copies(granule) <= _MOST_COPIES
        and (tile.depth == _DEPTHS[0] or tile.depth < 2 * inner)
        and tile.stages <= max(2, -(-inner // tile.depth) + 1)
    )
