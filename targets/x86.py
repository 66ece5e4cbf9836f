"""x86 processors, weakest first."""

from __future__ import annotations

from intcert.targets.base import DotUnit, Target, TileUnit

# Half of the sixteen registers hold sums: each product needs one of its own before it is added.
# Weights are widened ahead of time, or in a register where that costs less than reading twice as many bytes.
_NARROW = DotUnit("vpmaddwd", lanes=8, depth=2, activation="int16", weight="int8", accumulators=8)
VPMADDWD = DotUnit("vpmaddwd", lanes=8, depth=2, activation="int16", weight="int16", accumulators=8, once=_NARROW)
VPDPBUSD = DotUnit("vpdpbusd", lanes=16, depth=4, activation="uint8", weight="int8", accumulators=15)
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
AMX_INT8 = TileUnit("amx-int8", rows=16, columns=16, depth=64, registers=8, permission=(158, 0x1023, 18))

_TRIPLE = "x86_64-linux-gnu"
# LLVM would look the noise table up with gathers, at a third of the speed of plain loads.
_NO_GATHER = ("+prefer-no-gather",)

_AVX2 = ("avx2",)
_VNNI = ("avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")

TARGETS = (
    Target(
        name="x86",
        description="any x86-64 with AVX2 (Haswell, Zen and later)",
        kind="llvm",
        triple=_TRIPLE,
        mcpu="haswell",
        mattr=(),
        cpu_flags=_AVX2,
        dot=VPMADDWD,
        q15_unit="int32",
        byte_lookup="loads",
        arena_budget=256 << 10,
    ),
    Target(
        name="x86-vnni",
        description="AVX-512 with VNNI (Cascade Lake, Ice Lake, Zen 4 and later)",
        kind="llvm",
        triple=_TRIPLE,
        mcpu="cascadelake",
        mattr=_NO_GATHER,
        cpu_flags=_VNNI,
        dot=VPDPBUSD,
        q15_unit="vpmulhrsw",
        byte_lookup="loads",
        arena_budget=1 << 20,
        tags=("aws/cpu/c5.12xlarge", "aws/cpu/c5.24xlarge"),
    ),
    Target(
        name="x86-amx",
        description="AMX int8 tiles (Sapphire Rapids and later)",
        kind="llvm",
        triple=_TRIPLE,
        mcpu="sapphirerapids",
        mattr=_NO_GATHER,
        cpu_flags=(*_VNNI, "avx512vbmi", "amx_tile", "amx_int8"),
        dot=VPDPBUSD,
        q15_unit="vpmulhrsw",
        byte_lookup="vpermb",
        arena_budget=1 << 20,
        tile=AMX_INT8,
    ),
)
