"""Logits to counts: the argmax of every sample (smallest index wins a tie), counted in rows of 64 samples."""

from __future__ import annotations

from functools import cache

from tvm import tirx

from intcert.compile.kernels.base import Expr, Kernel, kernel_function, local, loop, store, when
from intcert.compile.kernels.transfer import UNBOUNDED
from intcert.compile.layout import Layout
from intcert.runtime.session import ROW


def histogram(logits: Layout, batch: int) -> Kernel:
    """Kernel that adds one batch to the rows.

    Result: the rows, int32[ceil(n / 64) * classes]. Operand: the logits. Scalars: how many samples of the call came
    before this batch, and how many the call has; samples past the end are left out.
    """
    return Kernel("argmax.count", _function(logits, batch))


@cache
def _function(logits: Layout, batch: int) -> tirx.PrimFunc:
    parameters = [("rows", "int32", UNBOUNDED), ("logits", logits.dtype, batch * logits.elements)]

    def body(rows: tirx.Buffer, values: tirx.Buffer, before: Expr, total: Expr) -> None:
        best = local(1, "int32")
        with loop(batch) as i, when(before + i.astype("int64") < total):
            store(best, 0, tirx.const(0, "int32"))
            first = i * logits.stride
            with loop(logits.channels) as c, when(values[first + c] > values[first + best[0]]):
                store(best, 0, c)
            row = ((before + i.astype("int64")) // ROW).astype("int32")
            at = row * logits.channels + best[0]
            store(rows, at, rows[at] + 1)

    return kernel_function(parameters, body, scalars=("before", "total"))
