"""The shape every target has: hardware as data. A kernel generator asks these values; nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DotUnit:
    """The instruction that multiplies and sums: what a convolution kernel is built around.

    Each of ``lanes`` int32 accumulators takes ``depth`` products at a time. ``activation`` and ``weight`` are the
    dtypes in which the operands must lie in memory; ``accumulators`` is how many registers a tile may keep in flight,
    ``blocks`` how many of them may be channels of one pixel: as many registers of weights are needed at once.

    rows: pixels whose sums share a register, ``lanes // rows`` channels each, in a unit that multiplies matrices.
    steps: reduction steps that one load of activations serves, where the instruction picks its operand by lane.
    pairs: weights of a register lie in pairs, first those of all lanes, then the second ones.
    full_range: the unit for layers with a weight of -128, where this one, which sums pairs in 16 bits, would overflow.
    once: the unit for layers that use every weight once an image, whose time goes to reading them from memory.
    """

    name: str
    lanes: int
    depth: int
    activation: str
    weight: str
    accumulators: int
    blocks: int = 4
    rows: int = 1
    steps: int = 1
    pairs: bool = False
    full_range: DotUnit | None = None
    once: DotUnit | None = None

    @property
    def channels(self) -> int:
        """Output channels of one register."""
        return self.lanes // self.rows


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

    name: what the command line calls it; description: for people; kind, triple, mcpu, mattr, float_abi: what LLVM is
    told; the triple also names the GNU tools that link for it;
    cpu_flags: instruction sets it must have, as /proc/cpuinfo spells them; dot: the unit its convolutions use;
    matrix: its like for convolutions whose channels fill a deeper unit, if there is one; tile: the unit for those that
    fit it, if there is one;
    q15_unit: what requantizes in the q15 scheme, "int32" or, in 16-bit lanes, "vpmulhrsw" (AVX-512BW), "sqrdmulh"
    (AArch64) or "vqrdmulh" (ARMv7);
    byte_lookup: how a table of bytes is read, "loads" or "vpermb" (64 entries at once, AVX512-VBMI);
    arena_budget: bytes of activations that should stay in the core's second-level cache;
    tags: what TVM's registry calls machines with this processor; ``find`` takes those names too.
    """

    name: str
    description: str
    kind: str
    triple: str
    mcpu: str
    mattr: tuple[str, ...]
    cpu_flags: tuple[str, ...]
    dot: DotUnit
    q15_unit: str
    byte_lookup: str
    arena_budget: int
    matrix: DotUnit | None = None
    tile: TileUnit | None = None
    float_abi: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class MmaUnit:
    """The integer matrix instruction of a warp: (m x k) by (k x n) bytes, either signedness, summed in int32.

    shape: as PTX spells it (PTX ISA, "mma"); one instruction of a narrower shape does part of an m16n8k32.
    """

    shape: str
    m: int
    n: int
    k: int


@dataclass(frozen=True)
class CudaTarget:
    """NVIDIA GPUs, in a machine whose processor launches their kernels.

    name, description: as in Target; architectures: those that get machine code, as nvcc spells them, weakest first;
    capability: the least compute capability (major, minor) of a device that runs the weakest; mma: matrix instruction;
    async_copy: whether cp.async moves global to shared memory past the registers; shared_memory: bytes a block may
    declare; max_threads: of a block; stages: tiles in flight while one is multiplied, the latter included;
    triple, cpu_flags: of that processor, as in Target; the code that launches kernels needs no instruction sets.
    """

    name: str
    description: str
    architectures: tuple[str, ...]
    capability: tuple[int, int]
    mma: MmaUnit
    async_copy: bool
    shared_memory: int
    max_threads: int
    stages: int
    triple: str
    cpu_flags: tuple[str, ...] = ()
    kind: str = "cuda"
