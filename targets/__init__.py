"""Hardware as data, and the lookup. Adding a processor is adding one Target to its family's tuple."""

from __future__ import annotations

import difflib
import platform
from pathlib import Path

from intcert.targets import arm, cuda, x86
from intcert.targets.base import CudaTarget, DotUnit, MmaUnit, Target, TileUnit

__all__ = [
    "GPU_TARGETS",
    "TARGETS",
    "CudaTarget",
    "DotUnit",
    "MmaUnit",
    "Target",
    "TileUnit",
    "UnknownTargetError",
    "cpu_flags",
    "find",
    "host",
    "runnable",
]

TARGETS: tuple[Target, ...] = (*x86.TARGETS, *arm.TARGETS)
GPU_TARGETS: tuple[CudaTarget, ...] = cuda.TARGETS


class UnknownTargetError(ValueError):
    """A target name that no family knows, or a host that fits none; the message names the nearest ones."""


def find(name: str) -> Target | CudaTarget:
    """The target of this name, or with this tag of TVM's; "host" is the strongest processor that this machine has.

    Names of GPU targets may be joined by commas, for one library that runs on each of them.
    Raises UnknownTargetError.
    """
    if name == "host":
        return host()
    known: dict[str, Target | CudaTarget] = {tag: target for target in TARGETS for tag in (target.name, *target.tags)}
    known |= {target.name: target for target in GPU_TARGETS}
    if "," in name:
        parts = [find(part.strip()) for part in name.split(",")]
        alone = next((part.name for part in parts if not isinstance(part, CudaTarget)), None)
        if alone is not None:
            raise UnknownTargetError(f"target {name!r} joins {alone!r}; only GPU targets share a library")
        return cuda.combine(tuple(parts))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or [target.name for target in TARGETS]
        raise UnknownTargetError(
            f"unknown target {name!r}; did you mean {', '.join(near)}? `intcert targets` lists all"
        )
    return known[name]


def runnable() -> tuple[Target, ...]:
    """The targets whose instruction sets this machine has, decided from its CPU flags alone, weakest first."""
    have = cpu_flags()
    return tuple(target for target in TARGETS if have.issuperset(target.cpu_flags))


def host() -> Target:
    """The last (strongest) target that this machine runs.

    Raises UnknownTargetError where none fits.
    """
    fitting = runnable()
    if not fitting:
        raise UnknownTargetError(
            f"no target fits this machine ({platform.machine()}, neither AVX2 nor NEON); name one with --target"
        )
    return fitting[-1]


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this machine as Linux reports them (``flags`` on x86, ``Features`` on ARM), or none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    names = ("flags", "Features")
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith(names)), "").split())
