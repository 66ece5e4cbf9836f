"""The matrix instruction of a warp and the copies that feed it, as PTX (PTX ISA, "Warp Level Matrix Instructions").

All tiles are those of mma.m16n8k32: of A (16 x 32 bytes) lane l holds, for row l / 4 and the row 8 below, 4 bytes from
column 4 (l mod 4) and 4 from 16 further; of B (32 x 8) likewise, by columns; of C the sums of columns 2 (l mod 4) and
the next, for both rows. Turing's m8n8k16 has the same layout for each quarter of A, so four of them do the same work.
"""

from __future__ import annotations

from tvm import tirx
from tvm.backend.cuda.ptx.engine import PTXNamespace
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import Index, store
from intcert.targets import MmaUnit

ROWS, COLUMNS, DEPTH = 16, 8, 32  # bytes of a tile
LANES = 32
CHUNK = 16  # bytes of a row that lie together in shared memory

_ptx = PTXNamespace()
_PTX_TYPE = {"int8": "s8", "uint8": "u8"}


def multiply(
    unit: MmaUnit,
    dtype: str,
    sums: tirx.Buffer,
    sum_at: Index,
    a: tirx.Buffer,
    a_at: Index,
    b: tirx.Buffer,
    b_at: Index,
) -> None:
    """sums[sum_at ..][4] += a[a_at ..][4] times b[b_at ..][2], all uint32; dtype: of the activations, which are A."""
    if unit.k == DEPTH:
        parts = [((0, 1, 2, 3), (0, 1, 2, 3), (0, 1))]
    else:
        parts = [((2 * row, 2 * row + 1), (row + 2 * half,), (half,)) for half in (0, 1) for row in (0, 1)]
    instruction = _ptx[f"mma.sync.aligned.{unit.shape}.row.col.s32.{_PTX_TYPE[dtype]}.s8.s32"]
    for c_registers, a_registers, b_registers in parts:
        c = [sums[sum_at + i] for i in c_registers]
        operands = [a[a_at + i] for i in a_registers] + [b[b_at + i] for i in b_registers]
        tb.evaluate(instruction(*c, *operands, *c))


def load_matrices(target: tirx.Buffer, at: Index, source: tirx.Buffer, word: Index) -> None:
    """target[at ..][4] = word l mod 4 of row l / 4 of four matrices of 8 x 16 bytes in shared memory.

    word: where, in words, row l mod 8 of matrix l / 8 begins, for lane l.
    """
    registers = [target[at + i] for i in range(4)]
    tb.evaluate(_ptx.ldmatrix.sync.aligned.m8n8.x4.shared.b16(*registers, tirx.address_of(source[word])))


def copy(
    asynchronous: bool, target: tirx.Buffer, target_word: Index, source: tirx.Buffer, source_word: Index, size: int
) -> None:
    """Copy 4, 8 or 16 aligned bytes from global to shared memory; both are arrays of uint32."""
    if asynchronous:
        # Whole lines go past the first-level cache; cp.async offers that for 16 bytes only.
        instruction = _ptx["cp.async.cg.shared.global" if size == CHUNK else "cp.async.ca.shared.global"]
        tb.evaluate(instruction(tirx.address_of(target[target_word]), tirx.address_of(source[source_word]), size))
        return
    words = size // 4
    value = source[tirx.Ramp(source_word, 1, words)] if words > 1 else source[source_word]
    store(target, target_word, value, words)


def commit(asynchronous: bool) -> None:
    """End a group of copies."""
    if asynchronous:
        tb.evaluate(_ptx.cp.async_.commit_group())


def wait(asynchronous: bool, pending: int) -> None:
    """Wait until at most so many groups of this thread are under way."""
    if asynchronous:
        tb.evaluate(_ptx.cp.async_.wait_group(pending))
