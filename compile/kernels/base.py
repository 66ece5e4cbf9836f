"""What every kernel family hands to the lowering, and the few words of TIR they are written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as tb

Expr = ir.Expr
Index = Expr | int

#: int32 lanes of vectors that no dot unit dictates; LLVM splits them where registers are narrower.
LANES = 16


@dataclass(frozen=True)
class Schedule:
    """How a kernel does its work: what decides its time and never its result.

    Every family of kernels that has a choice subclasses this with fields of its own, integers and booleans, so that
    JSON can hold them.
    """


@dataclass(frozen=True)
class Kernel:
    """A private TIR function and what it needs beside its operands.

    function takes pointers in this order: result, operands in the order of ``nodes.operands``, constants, scratch.
    scratch: bytes of each such array. Functions are cached by their specification, so equal layers share one.
    name says which instruction does the work, for people; schedule: what was chosen, where the family has a choice.
    """

    name: str
    function: tirx.PrimFunc
    constants: tuple[np.ndarray, ...] = field(default=(), repr=False)
    scratch: tuple[int, ...] = ()
    schedule: Schedule | None = None


def kernel_function(
    parameters: list[tuple[str, str, int]], body: Callable[..., None], scalars: tuple[str, ...] = ()
) -> tirx.PrimFunc:
    """A private function of pointers (name, dtype, elements), then int64 scalars; body writes it, given the buffers."""
    with IRBuilder() as ib, tb.prim_func(is_private=True):
        tb.func_name("kernel")
        tb.func_attr({"tirx.noalias": True})
        tb.func_ret(ir.PrimType("int32"))  # the status that a compute_scope hands on
        arguments = declare_arguments(parameters, scalars)
        # compute_scope keeps LLVM from inlining the body, and it must: TVM gives every buffer an alias class of its
        # own, which is true within a kernel. Between inlined kernels the same memory would go by two names, and LLVM
        # would move the loads of one before the stores of the other.
        # device_type puts local arrays on the stack, since a private function has no calling convention to say so.
        with (
            tb.attr(tirx.const(0, "int32"), "compute_scope", "kernel_body"),
            tb.attr(tirx.const(0, "int32"), "device_type", tirx.const(1, "int32")),
        ):
            body(*arguments)
    return ib.get()


def declare_arguments(parameters: list[tuple[str, str, int]], scalars: tuple[str, ...]) -> list[tirx.Buffer | Expr]:
    """Emit the arguments of the function being built: buffers of pointers (name, dtype, elements), int64 scalars."""
    pointers = [tb.arg(name, tb.handle(dtype)) for name, dtype, _ in parameters]
    values = [tb.arg(name, tb.int64()) for name in scalars]
    buffers = [
        tb.decl_buffer((elements,), dtype, data=pointer)
        for pointer, (_, dtype, elements) in zip(pointers, parameters, strict=True)
    ]
    return [*buffers, *values]


def loop(count: int) -> object:
    """``for i in range(count)``, as a context manager that gives i."""
    return tb.serial(0, count)


@contextmanager
def when(condition: Expr | None) -> Iterator[None]:
    """``if condition:``; no condition, no branch."""
    if condition is None:
        yield
    else:
        with tb.If(condition), tb.Then():
            yield


def local(elements: int, dtype: str) -> tirx.Buffer:
    """An array on the stack; LLVM keeps it in registers where every index is a constant."""
    return tb.alloc_buffer((elements,), dtype)


def typed(dtype: str, lanes: int) -> str:
    """Name of the dtype with this many lanes."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def vector(buffer: tirx.Buffer, start: Index, lanes: int = LANES) -> Expr:
    """Load of ``lanes`` consecutive elements."""
    return buffer[_index(start, lanes)]


def store(buffer: tirx.Buffer, start: Index, value: Expr, lanes: int = 1) -> None:
    """Store of ``lanes`` consecutive elements."""
    tb.buffer_store(buffer, value, [_index(start, lanes)])


def splat(value: Expr | int, dtype: str, lanes: int) -> Expr:
    """A vector of equal elements."""
    scalar = tirx.const(value, dtype) if isinstance(value, int) else value
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def shuffled(vectors: list[Expr], indices: Iterable[int]) -> Expr:
    """Elements of vectors of one length, which are counted on from one vector to the next."""
    return tirx.Shuffle(vectors, [tirx.const(i, "int32") for i in indices])


def part(value: Expr, start: int, lanes: int) -> Expr:
    """``lanes`` neighbouring elements of a vector."""
    return value if value.ty.dtype.lanes == lanes else shuffled([value], range(start, start + lanes))


def joined(vectors: list[Expr]) -> Expr:
    """The elements of vectors of one length, one vector after the other."""
    if len(vectors) == 1:
        return vectors[0]
    lanes = sum(value.ty.dtype.lanes for value in vectors)
    return shuffled(vectors, range(lanes))


def _index(start: Index, lanes: int) -> Index:
    return tirx.Ramp(tirx.const(start, "int32") if isinstance(start, int) else start, 1, lanes) if lanes > 1 else start


def clipped(tile: Expr, size: int, extent: int) -> Expr | int:
    """Start of tile number ``tile``, moved back so that all ``size`` elements lie within ``extent``."""
    return tirx.min(tile * size, extent - size) if extent % size else tile * size
