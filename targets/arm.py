"""ARM Cortex-A processors: 32-bit ones (ARMv7 with NEON), then 64-bit ones, weakest first."""

from __future__ import annotations

from dataclasses import replace

from intcert.targets.base import DotUnit, Target

# A load of 16 bytes of activations serves four steps: the instructions take one of its lanes.
_NEON = {"lanes": 4, "depth": 4, "weight": "int8", "steps": 4}

# ARMv8.2-A FEAT_DotProd and ARMv8.6-A FEAT_I8MM, which takes unsigned activations as they are.
SDOT = DotUnit("sdot", activation="int8", accumulators=20, **_NEON)
USDOT = DotUnit("usdot", activation="uint8", accumulators=20, **_NEON)
# 2 x 8 by 8 x 2 matrices: pixels by channels.
USMMLA = DotUnit(
    "usmmla", lanes=4, depth=8, activation="uint8", weight="int8", accumulators=16, blocks=4, rows=2, steps=2
)
# Two products to a 16-bit lane (multiply, multiply-add), then a pairwise sum into 32 bits. (-128)^2 twice would
# overflow, so layers with a weight of -128 sum each product alone.
_PAIRS = _NEON | {"activation": "int8", "accumulators": 12, "pairs": True}
SMULL = DotUnit("smull", **_PAIRS)
SMLAL = DotUnit("smlal", full_range=SMULL, **(_PAIRS | {"accumulators": 16}))
# The same on ARMv7, which has 16 registers: no room for activations that wait, so each pair is loaded to all lanes.
_PAIRS_ARMV7 = _PAIRS | {"accumulators": 8, "blocks": 2, "steps": 1}
VMLAL = DotUnit("vmlal", full_range=DotUnit("vmull", **_PAIRS_ARMV7), **_PAIRS_ARMV7)
# For in-order cores LLVM moves loads further ahead, and needs registers for them.
SDOT_IN_ORDER = replace(SDOT, accumulators=16)
SMLAL_IN_ORDER = replace(SMLAL, accumulators=12)

# Without LLVM's machine scheduler all products of a loop come before all sums, more than the registers hold.
_ARMV7_LLVM = ("+neon", "+use-misched")
_FLAGS = {"smlal": ("asimd",), "sdot": ("asimd", "asimddp"), "usdot": ("asimd", "asimddp", "i8mm")}


def _aarch64(name: str, description: str, mcpu: str, dot: DotUnit, arena_budget: int, **facts: object) -> Target:
    return Target(
        name=name,
        description=description,
        kind="llvm",
        triple="aarch64-linux-gnu",
        mcpu=mcpu,
        cpu_flags=_FLAGS[dot.name],
        dot=dot,
        q15_unit="sqrdmulh",
        byte_lookup="loads",
        arena_budget=arena_budget,
        **({"mattr": ()} | facts),
    )


def _armv7(name: str, description: str, mcpu: str, arena_budget: int, **facts: object) -> Target:
    return Target(
        name=name,
        description=description,
        kind="llvm",
        triple="arm-linux-gnueabihf",
        mcpu=mcpu,
        mattr=_ARMV7_LLVM,
        cpu_flags=("neon",),
        dot=VMLAL,
        q15_unit="vqrdmulh",
        byte_lookup="loads",
        arena_budget=arena_budget,
        float_abi="hard",
        **facts,
    )


TARGETS = (
    _armv7("arm-a9", "Cortex-A9, 32 bits (Zynq-7000)", "cortex-a9", 256 << 10, tags=("arm/pynq",)),
    _armv7("arm-a7", "Cortex-A7, 32 bits (Raspberry Pi 2, STM32MP1)", "cortex-a7", 128 << 10,
           tags=("arm/stm32mp1", "arm/rasp3b")),
    _armv7("arm-a15", "Cortex-A15, 32 bits; any ARMv8 with a 32-bit system", "cortex-a15", 512 << 10,
           tags=("arm/beagleai", "arm/rasp4b")),
    _aarch64("arm-a53", "Cortex-A53 (Raspberry Pi 3); any 64-bit ARM", "cortex-a53", SMLAL_IN_ORDER, 256 << 10,
             tags=("arm/ultra96", "arm/thunderx")),
    _aarch64("arm-a72", "Cortex-A72 (Raspberry Pi 4)", "cortex-a72", SMLAL, 512 << 10,
             tags=("raspberry-pi/4b-aarch64", "arm/rasp4b64", "arm/rk3399")),
    _aarch64("arm-a55", "Cortex-A55, dot product", "cortex-a55", SDOT_IN_ORDER, 128 << 10),
    _aarch64("arm-a76", "Cortex-A76, dot product (Raspberry Pi 5)", "cortex-a76", SDOT, 384 << 10),
    _aarch64("arm-a78", "Cortex-A78, dot product", "cortex-a78", SDOT, 384 << 10),
    _aarch64("arm-v8.6", "ARMv8.6 and ARMv9 with int8 matrices (Cortex-A510, A710, Neoverse N2)", "generic", USDOT,
             384 << 10, mattr=("+v8.6a",), matrix=USMMLA),
)  # fmt: skip
