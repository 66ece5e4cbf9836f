"""Kernels that look at one position at a time: the input's quantization and requantized sums."""

from __future__ import annotations

from functools import cache

import numpy as np
from tvm import tirx

from intcert.compile.infer import input_scale
from intcert.compile.kernels.base import (
    LANES,
    Expr,
    Kernel,
    clipped,
    kernel_function,
    loop,
    splat,
    store,
    typed,
    vector,
)
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.layout import Layout
from intcert.compile.nodes import Add, InputQuantize
from intcert.targets import Target


def input_quantize(node: InputQuantize, result: Layout, batch: int, scheme: str, target: Target) -> Kernel:
    """Kernel of the first node. Its operand is pixel + noise, int16[batch, H, W, C], without spare channels.

    An image is quantized as it lies, with constants repeated for LANES pixels, and then spread to its channel stride.
    """
    entries = np.tile(np.arange(result.channels), LANES)
    epilogue, constants = plan_epilogue(
        node.requant.select(entries), node.clamp, node.bias[entries], (), len(entries), unit=target.q15_unit
    )
    scratch = (result.height * result.width * result.channels + result.stride,)
    return Kernel("quantize", _input_function(epilogue, result, batch, input_scale(scheme)), constants, scratch)


@cache
def _input_function(epilogue: Epilogue, result: Layout, batch: int, scale: int) -> tirx.PrimFunc:
    pixels, channels = result.height * result.width, result.channels
    parameters = [
        ("result", result.dtype, batch * result.elements),
        ("source", "int16", batch * pixels * channels),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
        ("dense", result.dtype, pixels * channels + result.stride),
    ]
    # Pixels at a time, and lanes of the vectors that hold them.
    group, lanes = (LANES, LANES) if pixels >= LANES else (pixels, 1)

    def body(
        output: tirx.Buffer, source: tirx.Buffer, narrow: tirx.Buffer, wide: tirx.Buffer, dense: tirx.Buffer
    ) -> None:
        starts = range(0, group * channels, lanes)

        def scaled(at: Expr, start: int) -> Expr:
            wide_type = typed("int32", lanes)
            value = vector(source, at + start, lanes).astype(wide_type) * splat(scale, "int32", lanes)
            return value + vector(narrow, start, lanes)

        with loop(batch) as n:
            with loop(-(-pixels // group)) as g:
                at = clipped(g, group, pixels) * channels
                sums = [scaled(n * (pixels * channels) + at, start) for start in starts]
                epilogue.store_run(dense, at, sums, list(starts), (), (narrow, wide), lanes)
            with loop(pixels) as p, loop(result.stride // LANES) as c:
                spread = vector(dense, p * channels + c * LANES)
                store(output, n * result.elements + p * result.stride + c * LANES, spread, LANES)

    return kernel_function(parameters, body)


def add(node: Add, terms: list[Layout], result: Layout, batch: int, target: Target) -> Kernel:
    """Kernel of a requantized sum of stored tensors, whose constants serve all channels."""
    no_bias = np.zeros(0, np.int32)
    epilogue, constants = plan_epilogue(
        node.requant, node.clamp, no_bias, tuple(term.dtype for term in terms), LANES, unit=target.q15_unit
    )
    return Kernel("add", _add_function(epilogue, result, batch), constants)


@cache
def _add_function(epilogue: Epilogue, result: Layout, batch: int) -> tirx.PrimFunc:
    elements = batch * result.elements
    vectors = next(count for count in (4, 2, 1) if elements % (count * LANES) == 0)
    parameters = [
        ("result", result.dtype, elements),
        *((f"term{j}", dtype, elements) for j, dtype in enumerate(epilogue.terms)),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]

    def body(output: tirx.Buffer, *rest: tirx.Buffer) -> None:
        *terms, narrow, wide = rest
        with loop(elements // (vectors * LANES)) as i:
            epilogue.store_run(output, i * (vectors * LANES), None, [0] * vectors, terms, (narrow, wide))

    return kernel_function(parameters, body)
