"""The shape every target has: hardware as data. A kernel generator asks these values; nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DotUnit:
    """The instruction that multiplies and sums: what a convolution kernel is built around.

    Each of ``lanes`` int32 accumulators takes ``depth`` products at a time. ``activation`` and ``weight`` are the
    dtypes in which the operands must lie in memory; ``accumulators`` is how many registers a tile may keep in flight.
    """

    name: str
    lanes: int
    depth: int
    activation: str
    weight: str
    accumulators: int


@dataclass(frozen=True)
class TileUnit:
    """A unit that multiplies whole tiles: (rows x depth) bytes by (depth x columns) bytes, summed in int32.

    registers: tiles that it holds; permission: the Linux system call, with its arguments, that must return 0 before a
    process may use them.
    """

    name: str
    rows: int
    columns: int
    depth: int
    registers: int
    permission: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """One kind of device.

    name: what the command line calls it; description: for people; kind, mcpu, mattr: what LLVM is told;
    cpu_flags: instruction sets it must have, as /proc/cpuinfo spells them; dot: the unit its convolutions use;
    tile: the unit for those that fit it, if there is one;
    q15_unit: what requantizes in the q15 scheme, "int32" or "vpmulhrsw" (16-bit lanes, AVX-512BW);
    byte_lookup: how a table of bytes is read, "loads" or "vpermb" (64 entries at once, AVX512-VBMI);
    arena_budget: bytes of activations that should stay in the core's second-level cache.
    """

    name: str
    description: str
    kind: str
    mcpu: str
    mattr: tuple[str, ...]
    cpu_flags: tuple[str, ...]
    dot: DotUnit
    q15_unit: str
    byte_lookup: str
    arena_budget: int
    tile: TileUnit | None = None
