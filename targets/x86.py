"""x86 processors, weakest first."""

from __future__ import annotations

from intcert.targets.base import DotUnit, Target

VPMADDWD = DotUnit("vpmaddwd", lanes=8, depth=2, activation="int16", weight="int16", accumulators=12)
VPDPBUSD = DotUnit("vpdpbusd", lanes=16, depth=4, activation="uint8", weight="int8", accumulators=15)

# LLVM would look the noise table up with gathers, at a third of the speed of plain loads.
_NO_GATHER = ("+prefer-no-gather",)

_AVX2 = ("avx2",)
_VNNI = ("avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")

TARGETS = (
    Target(
        name="x86",
        description="any x86-64 with AVX2 (Haswell, Zen and later)",
        kind="llvm",
        mcpu="haswell",
        mattr=(),
        cpu_flags=_AVX2,
        dot=VPMADDWD,
        arena_budget=256 << 10,
    ),
    Target(
        name="x86-vnni",
        description="AVX-512 with VNNI (Cascade Lake, Ice Lake, Zen 4 and later)",
        kind="llvm",
        mcpu="cascadelake",
        mattr=_NO_GATHER,
        cpu_flags=_VNNI,
        dot=VPDPBUSD,
        arena_budget=1 << 20,
    ),
    Target(
        name="x86-amx",
        description="AMX int8 tiles (Sapphire Rapids and later); its convolutions use VNNI for now",
        kind="llvm",
        mcpu="sapphirerapids",
        mattr=_NO_GATHER,
        cpu_flags=(*_VNNI, "amx_tile", "amx_int8"),
        dot=VPDPBUSD,
        arena_budget=1 << 20,
    ),
)
