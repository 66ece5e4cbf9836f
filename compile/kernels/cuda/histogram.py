"""Logits to counts on the GPU: a block decides the 64 samples of a row and writes all of it."""

from __future__ import annotations

from functools import cache

from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import Expr, Kernel, loop, store, when
from intcert.compile.kernels.cuda.base import PER_SAMPLE, barrier, device_function, registers, shared
from intcert.compile.layout import Layout
from intcert.runtime.session import ROW


def histogram(logits: Layout) -> Kernel:
    """Kernel that counts the decisions of one chunk, row by row; the smallest index wins a tie.

    Result: the rows, int32[ceil(n / 64), classes]. Operand: the logits. Scalar: the chunk's first row. A chunk begins
    with a row, and only the call's last one may end within a row.
    """
    return Kernel("argmax.count", _function(logits))


@cache
def _function(logits: Layout) -> tirx.PrimFunc:
    classes = logits.channels

    def body(block: Expr, thread: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        rows, values = buffers
        samples, first_row = scalars
        decisions = shared(ROW, "int32")
        best = registers(1, "int32")
        sample = block * ROW + thread
        store(best, 0, tirx.const(-1, "int32"))
        with when(sample < samples):
            store(best, 0, tirx.const(0, "int32"))
            first = sample * logits.stride
            with loop(classes) as c, when(values[first + c] > values[first + best[0]]):
                store(best, 0, c)
        store(decisions, thread, best[0])
        barrier()
        with tb.serial(0, -(-classes // ROW)) as turn:
            c = turn * ROW + thread
            with when(c < classes):
                store(best, 0, tirx.const(0, "int32"))
                with loop(ROW) as i, when(tirx.EQ(decisions[i], c)):
                    store(best, 0, best[0] + 1)
                store(rows, (first_row + block.astype("int64")) * classes + c.astype("int64"), best[0])

    parameters = [("rows", "int32", PER_SAMPLE), ("logits", logits.dtype, PER_SAMPLE)]
    return device_function(
        parameters, lambda samples: (samples + (ROW - 1)) // ROW, ROW, body, (("first_row", "int64"),)
    )
