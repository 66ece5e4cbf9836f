"""Kernels that look at one position at a time: the input's quantization and requantized sums."""

from __future__ import annotations

from functools import cache

import numpy as np
from tvm import tirx

from intcert.compile.infer import input_scale
from intcert.compile.kernels.base import LANES, Expr, Kernel, kernel_function, loop, store, vector
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.layout import Layout
from intcert.compile.nodes import Add, InputQuantize


def input_quantize(node: InputQuantize, result: Layout, batch: int, scheme: str) -> Kernel:
    """Kernel of the first node. Its operand is pixel + noise, int16[batch, H, W, C], without spare channels."""
    epilogue, constants = plan_epilogue(node.requant, node.clamp, node.bias, (), result.stride)
    return Kernel("quantize", _input_function(epilogue, result, batch, input_scale(scheme)), constants)


@cache
def _input_function(epilogue: Epilogue, result: Layout, batch: int, scale: int) -> tirx.PrimFunc:
    pixels = batch * result.height * result.width
    parameters = [
        ("result", result.dtype, batch * result.elements),
        ("source", "int16", pixels * result.channels),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]

    def body(output: tirx.Buffer, source: tirx.Buffer, narrow: tirx.Buffer, wide: tirx.Buffer) -> None:
        with loop(pixels) as p, loop(result.channels) as c:
            scaled = source[p * result.channels + c].astype("int32") * tirx.const(scale, "int32") + narrow[c]

            def load(buffer: tirx.Buffer, base: int, c: Expr = c) -> Expr:
                return buffer[base + c]

            store(output, p * result.stride + c, epilogue.result(scaled, [], load, (narrow, wide), 1))

    return kernel_function(parameters, body)


def add(node: Add, terms: list[Layout], result: Layout, batch: int) -> Kernel:
    """Kernel of a requantized sum of stored tensors."""
    no_bias = np.zeros(0, np.int32)
    epilogue, constants = plan_epilogue(
        node.requant, node.clamp, no_bias, tuple(term.dtype for term in terms), result.stride
    )
    return Kernel("add", _add_function(epilogue, result, batch), constants)


@cache
def _add_function(epilogue: Epilogue, result: Layout, batch: int) -> tirx.PrimFunc:
    pixels = batch * result.height * result.width
    parameters = [
        ("result", result.dtype, batch * result.elements),
        *((f"term{j}", dtype, batch * result.elements) for j, dtype in enumerate(epilogue.terms)),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]

    def body(output: tirx.Buffer, *rest: tirx.Buffer) -> None:
        *terms, narrow, wide = rest
        with loop(pixels) as p, loop(result.stride // LANES) as c:
            at = p * result.stride + c * LANES

            def load(buffer: tirx.Buffer, base: int, c: Expr = c) -> Expr:
                return vector(buffer, base + c * LANES)

            value = epilogue.result(None, [vector(term, at) for term in terms], load, (narrow, wide), LANES)
            store(output, at, value, LANES)

    return kernel_function(parameters, body)
