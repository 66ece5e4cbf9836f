"""What every GPU kernel is made of: the launch, barriers, and activations seen as 32-bit words of four channels.

Kernels are TIR with thread bindings. ``samples``, the number of samples of the chunk, is an argument: the grid grows
with it, everything else is known at compile time, so that no kernel divides by a run-time value (ptxas would do it in
floating point).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import Expr, Index, when
from intcert.compile.kernels.epilogue import Epilogue
from intcert.compile.layout import ITEM_BYTES, Layout

THREADS = 256  # a block of the kernels that handle one item a thread
WORD = 4  # channels in a 32-bit word
#: Nominal elements of an array whose size depends on the number of samples.
PER_SAMPLE = (1 << 31) - 1

Parameters = list[tuple[str, str, int]]


def device_function(
    parameters: Parameters,
    blocks: Callable[[Expr], Expr],
    threads: int,
    body: Callable[..., None],
    scalars: tuple[tuple[str, str], ...] = (),
) -> tirx.PrimFunc:
    """A kernel of pointers (name, dtype, elements) and scalars (name, dtype), the first of which is ``samples``.

    blocks: grid size for a number of samples; body(block, thread, buffers, scalars) writes the code of one thread.
    """
    with IRBuilder() as ib, tb.prim_func(is_private=True):
        tb.func_name("kernel")
        tb.func_attr({"tirx.noalias": True})
        pointers = [tb.arg(name, tb.handle(dtype)) for name, dtype, _ in parameters]
        values = [tb.arg(name, getattr(tb, dtype)()) for name, dtype in (("samples", "int32"), *scalars)]
        buffers = [
            tb.decl_buffer((elements,), dtype, data=pointer)
            for pointer, (_, dtype, elements) in zip(pointers, parameters, strict=True)
        ]
        with (
            tb.launch_thread("blockIdx.x", blocks(values[0])) as block,
            tb.launch_thread("threadIdx.x", threads) as thread,
        ):
            body(block, thread, buffers, values)
    return ib.get()


def per_item(
    parameters: Parameters,
    items: int,
    body: Callable[..., None],
    scalars: tuple[tuple[str, str], ...] = (),
) -> tirx.PrimFunc:
    """A kernel of one thread for each of ``items`` items a sample; body(item, buffers, scalars), items count on."""

    def threads(block: Expr, thread: Expr, buffers: list[tirx.Buffer], values: list[Expr]) -> None:
        item = block * THREADS + thread
        with when(item < values[0] * items):
            body(item, buffers, values)

    return device_function(
        parameters, lambda samples: (samples * items + (THREADS - 1)) // THREADS, THREADS, threads, scalars
    )


def registers(elements: int, dtype: str) -> tirx.Buffer:
    """An array of this thread; it stays in registers where every index is a constant once loops are unrolled."""
    return tb.alloc_buffer((elements,), dtype, scope="local")


def shared(elements: int, dtype: str) -> tirx.Buffer:
    """An array of this block."""
    return tb.alloc_buffer((elements,), dtype, scope="shared")


def barrier() -> None:
    """Wait for every thread of the block."""
    tb.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))


def unroll(count: int) -> object:
    """``for i in range(count)``, unrolled by nvcc."""
    return tb.unroll(0, count)


def activations(name: str, layout: Layout) -> tuple[str, str, int]:
    """Parameter of 8-bit activations as words."""
    assert ITEM_BYTES[layout.dtype] == 1, layout
    return (name, "uint32", PER_SAMPLE)


def byte(word: Expr, position: Index, dtype: str) -> Expr:
    """int32: byte ``position`` of a word (the lowest is 0), read as int8 or uint8."""
    if dtype == "uint8":
        return ((word >> _u32(position * 8)) & _u32(255)).astype("int32")
    # Up to the sign bit and down again. A cast of the word keeps its bits.
    return (word << _u32(24 - position * 8)).astype("int32") >> 24


def pack(values: Sequence[Expr]) -> Expr:
    """uint32: up to four 8-bit results as a word, the first one lowest; missing ones are 0."""
    word = _u32(0)
    for position, value in enumerate(values):
        word = word | ((value.astype("int32") & 255).astype("uint32") << _u32(8 * position))
    return word


def finish(
    epilogue: Epilogue,
    accumulator: Expr | None,
    terms: list[Expr],
    channel: Index,
    constants: tuple[tirx.Buffer, tirx.Buffer],
) -> Expr:
    """The result of one element; terms are int32."""
    return epilogue.result(accumulator, terms, lambda buffer, base: buffer[base + channel], constants, 1)


def _u32(value: Index) -> Expr:
    return tirx.const(value, "uint32") if isinstance(value, int) else value.astype("uint32")
