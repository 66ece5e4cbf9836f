"""The edges of ``logits``: samples from the caller into the arena, logits from the arena to the caller."""

from __future__ import annotations

from functools import cache

from tvm import tirx

from intcert.compile.kernels.base import Expr, Kernel, kernel_function, loop, store, when
from intcert.compile.layout import Layout

#: Nominal size of a pointer whose real size only the caller knows.
UNBOUNDED = 1 << 30


def load_samples(dimension: int, batch: int) -> Kernel:
    """Kernel that copies one batch of pixel + noise into the arena.

    Result: int16[batch, dimension]. Operand: the caller's samples, int16[n, dimension]. Scalars: how many samples came
    before this batch, and n; what lies past the end is not read.
    """
    return Kernel("load", _load_function(dimension, batch))


@cache
def _load_function(dimension: int, batch: int) -> tirx.PrimFunc:
    def body(pixels: tirx.Buffer, samples: tirx.Buffer, before: Expr, total: Expr) -> None:
        with loop(batch) as i, when(before + i.astype("int64") < total), loop(dimension) as j:
            at = (before + i.astype("int64")) * dimension + j.astype("int64")
            store(pixels, i * dimension + j, samples[at])

    parameters = [("pixels", "int16", batch * dimension), ("samples", "int16", UNBOUNDED)]
    return kernel_function(parameters, body, scalars=("before", "total"))


def store_logits(logits: Layout, batch: int) -> Kernel:
    """Kernel that copies one batch of logits out, as int32[n, classes]. Scalars as in ``load_samples``."""
    return Kernel("store", _store_function(logits, batch))


@cache
def _store_function(logits: Layout, batch: int) -> tirx.PrimFunc:
    def body(out: tirx.Buffer, values: tirx.Buffer, before: Expr, total: Expr) -> None:
        with loop(batch) as i, when(before + i.astype("int64") < total), loop(logits.channels) as c:
            at = (before + i.astype("int64")) * logits.channels + c.astype("int64")
            store(out, at, values[i * logits.stride + c].astype("int32"))

    parameters = [("out", "int32", UNBOUNDED), ("logits", logits.dtype, batch * logits.elements)]
    return kernel_function(parameters, body, scalars=("before", "total"))
