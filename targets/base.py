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
class Target:
    """One kind of device.

    name: what the command line calls it; description: for people; kind, mcpu, mattr: what LLVM is told;
    cpu_flags: instruction sets it must have, as /proc/cpuinfo spells them; dot: the unit its convolutions use;
    arena_budget: bytes of activations that should stay in the core's second-level cache.
    """

    name: str
    description: str
    kind: str
    mcpu: str
    mattr: tuple[str, ...]
    cpu_flags: tuple[str, ...]
    dot: DotUnit
    arena_budget: int
