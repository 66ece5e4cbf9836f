"""NVIDIA GPUs with integer Tensor Cores, weakest first (CUDA C++ Programming Guide, "Compute Capabilities")."""

from __future__ import annotations

from dataclasses import replace

from intcert.targets.base import CudaTarget, MmaUnit

M8N8K16 = MmaUnit("m8n8k16", m=8, n=8, k=16)
M16N8K32 = MmaUnit("m16n8k32", m=16, n=8, k=32)

_TURING = CudaTarget(
    name="cuda-sm75",
    description="NVIDIA Turing (T4, RTX 20)",
    architectures=("sm_75",),
    capability=(7, 5),
    mma=M8N8K16,
    async_copy=False,
    shared_memory=48 << 10,
    max_threads=1024,
    stages=2,
    triple="x86_64-linux-gnu",
)
_AMPERE = replace(
    _TURING,
    name="cuda-sm80",
    description="NVIDIA Ampere (A100, A30)",
    architectures=("sm_80",),
    capability=(8, 0),
    mma=M16N8K32,
    async_copy=True,
    stages=3,
)

TARGETS = (
    _TURING,
    _AMPERE,
    replace(
        _AMPERE,
        name="cuda-sm86",
        description="NVIDIA Ampere (A10, A40, RTX 30)",
        architectures=("sm_86",),
        capability=(8, 6),
    ),
    replace(
        _AMPERE,
        name="cuda-sm89",
        description="NVIDIA Ada (L4, L40, RTX 40)",
        architectures=("sm_89",),
        capability=(8, 9),
    ),
    replace(
        _AMPERE,
        name="cuda-sm90",
        description="NVIDIA Hopper (H100, H200)",
        architectures=("sm_90",),
        capability=(9, 0),
    ),
)


def combine(targets: tuple[CudaTarget, ...]) -> CudaTarget:
    """One target whose library has machine code for each of several; its kernels are those of the weakest."""
    ordered = sorted(dict.fromkeys(targets), key=lambda target: target.capability)
    return replace(
        ordered[0],
        name=",".join(target.name for target in ordered),
        description=", ".join(target.description for target in ordered),
        architectures=tuple(name for target in ordered for name in target.architectures),
    )
