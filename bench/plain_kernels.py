"""Kernels as one would write them without thinking of the processor: loops over the stored layout and scalar
arithmetic, which LLVM's vectorizer makes of it what it can. The yardstick of bench/plain.py; they equal the real ones
bit for bit.

Convolutions come in two loop orders, of which LLVM likes sometimes the one and sometimes the other: ``channels`` has
the output channels innermost, ``reduction`` the input channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.infer import input_scale
from intcert.compile.kernels import Schedule, kernel_for
from intcert.compile.kernels.base import Expr, Kernel, kernel_function, local, loop, store, when
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.layout import Layout
from intcert.compile.nodes import STORED_RANGE, Add, AvgPool2d, Conv2d, InputQuantize, Linear, MaxPool2d, Node
from intcert.targets import Target

ORDERS = ("channels", "reduction")


def plain_kernels(order: str) -> Callable[..., Kernel]:
    """What ``make_plan`` takes in place of ``kernel_for``; it knows no schedules. order: one of ``ORDERS``."""

    def choose(
        node: Node,
        inputs: list[Layout],
        result: Layout,
        batch: int,
        scheme: str,
        target: Target,
        schedule: Schedule | None = None,
    ) -> Kernel:
        match node:
            case InputQuantize():
                return _input_quantize(node, result, batch, scheme)
            case Conv2d() | Linear():
                return _conv2d(node, inputs[0], inputs[1:], result, batch, order)
            case Add():
                return _add(node, inputs, result, batch)
            case AvgPool2d():
                return _avg_pool2d(node, inputs[0], result, batch, scheme)
            case MaxPool2d():
                return _max_pool2d(node, inputs[0], result, batch)
        # What only moves elements is a loop already.
        return kernel_for(node, inputs, result, batch, scheme, target)

    return choose


def _finish(
    epilogue: Epilogue, output: tirx.Buffer, at: Expr, accumulator: Expr | None, channel: Expr, rest: tuple
) -> None:
    """Requantize one sum. rest: buffers of the terms and of the two constants."""
    *terms, narrow, wide = rest
    sums = None if accumulator is None else [accumulator]
    epilogue.store_run(output, at, sums, [channel], terms, (narrow, wide), lanes=1)


def _constants(epilogue: Epilogue) -> list[tuple[str, str, int]]:
    return [("narrow", "int32", epilogue.narrow_size), ("wide", "int64", epilogue.wide_size)]


def _input_quantize(node: InputQuantize, result: Layout, batch: int, scheme: str) -> Kernel:
    entries = np.arange(result.channels)
    epilogue, constants = plan_epilogue(node.requant.select(entries), node.clamp, node.bias[entries], (), len(entries))
    pixels = batch * result.height * result.width

    def body(output: tirx.Buffer, source: tirx.Buffer, narrow: tirx.Buffer, wide: tirx.Buffer) -> None:
        with loop(pixels) as p, loop(result.channels) as c:
            total = source[p * result.channels + c].astype("int32") * input_scale(scheme) + narrow[c]
            _finish(epilogue, output, p * result.stride + c, total, c, (narrow, wide))

    parameters = [("result", result.dtype, pixels * result.stride), ("source", "int16", pixels * result.channels)]
    return Kernel("quantize.plain", kernel_function(parameters + _constants(epilogue), body), constants)


def _conv2d(
    node: Conv2d | Linear, source: Layout, terms: list[Layout], result: Layout, batch: int, order: str
) -> Kernel:
    linear = isinstance(node, Linear)
    weight = node.weight[:, None, None, :] if linear else node.weight
    stride, dilation, padding = ((1, 1), (1, 1), (0, 0)) if linear else (node.stride, node.dilation, node.padding[:2])
    depthwise = not linear and node.groups == source.channels == result.channels
    if not linear and (node.pad_value or (node.groups > 1 and not depthwise)):
        raise ValueError(f"no plain schedule for {node.groups} groups with padding by {node.pad_value}")
    kernel_rows, kernel_columns, inputs = weight.shape[1:]
    epilogue, constants = plan_epilogue(
        node.requant, node.clamp, node.bias, tuple(term.dtype for term in terms), result.stride
    )
    outputs = result.channels
    channels_inside = order == "channels" or depthwise
    packed = np.ascontiguousarray(weight.transpose(1, 2, 3, 0) if channels_inside else weight).ravel()
    parameters = [
        ("result", result.dtype, batch * result.elements),
        ("source", source.dtype, batch * source.elements),
        *((f"term{j}", term.dtype, batch * result.elements) for j, term in enumerate(terms)),
        ("weights", "int8", packed.size),
        *_constants(epilogue),
        ("sums", "int32", outputs),
    ]

    def body(output: tirx.Buffer, values: tirx.Buffer, *rest: tirx.Buffer) -> None:
        *terms, weights, narrow, wide, sums = rest

        def windows(n: Expr, h: Expr, w: Expr, products: Callable[[Expr, Expr], None]) -> None:
            """products(kernel position, where the pixel under it lies) for those inside the image."""
            with loop(kernel_rows) as kh, loop(kernel_columns) as kw:
                y = h * stride[0] + kh * dilation[0] - padding[0]
                x = w * stride[1] + kw * dilation[1] - padding[1]
                with when(tirx.all(y >= 0, y < source.height, x >= 0, x < source.width)):
                    at = n * source.elements + (y * source.width + x) * source.stride
                    products(kh * kernel_columns + kw, at)

        def by_channels(position: Expr, at: Expr) -> None:
            if depthwise:
                with loop(outputs) as o:
                    _accumulate(sums, o, values[at + o], weights[position * outputs + o])
                return
            with loop(inputs) as i, loop(outputs) as o:
                _accumulate(sums, o, values[at + i], weights[(position * inputs + i) * outputs + o])

        with loop(batch) as n, loop(result.height) as h, loop(result.width) as w:
            start = n * result.elements + (h * result.width + w) * result.stride
            if channels_inside:
                with loop(outputs) as o:
                    store(sums, o, narrow[o])
                windows(n, h, w, by_channels)
                with loop(outputs) as o:
                    _finish(epilogue, output, start + o, sums[o], o, (*terms, narrow, wide))
                return
            total = local(1, "int32")
            with loop(outputs) as o:
                store(total, 0, narrow[o])

                def by_reduction(position: Expr, at: Expr, o: Expr = o) -> None:
                    first = (o * (kernel_rows * kernel_columns) + position) * inputs
                    with loop(inputs) as i:
                        _accumulate(total, 0, values[at + i], weights[first + i])

                windows(n, h, w, by_reduction)
                _finish(epilogue, output, start + o, total[0], o, (*terms, narrow, wide))

    return Kernel(
        f"{'depthwise' if depthwise else 'conv2d'}.plain",
        kernel_function(parameters, body),
        (packed, *constants),
        (4 * outputs,),
    )


def _accumulate(sums: tirx.Buffer, at: Expr | int, activation: Expr, weight: Expr) -> None:
    store(sums, at, sums[at] + activation.astype("int32") * weight.astype("int32"))


def _add(node: Add, terms: list[Layout], result: Layout, batch: int) -> Kernel:
    dtypes = tuple(term.dtype for term in terms)
    epilogue, constants = plan_epilogue(node.requant, node.clamp, np.zeros(0, np.int32), dtypes, 1)
    elements = batch * result.elements

    def body(output: tirx.Buffer, *rest: tirx.Buffer) -> None:
        with loop(elements) as i:
            _finish(epilogue, output, i, None, tirx.const(0, "int32"), rest)

    parameters = [("result", result.dtype, elements)]
    parameters += [(f"term{j}", dtype, elements) for j, dtype in enumerate(dtypes)]
    return Kernel("add.plain", kernel_function(parameters + _constants(epilogue), body), constants)


def _avg_pool2d(node: AvgPool2d, source: Layout, result: Layout, batch: int, scheme: str) -> Kernel:
    pre_shift = 0 if scheme == "q15" else 8
    epilogue, constants = plan_epilogue(node.requant, node.clamp, node.bias, (), len(node.bias), pre_shift)
    parameters = [
        ("result", result.dtype, batch * result.elements),
        ("source", source.dtype, batch * source.elements),
        ("rows", "int32", node.rows.size),
        ("columns", "int32", node.columns.size),
        ("kind", "int32", node.kind.size),
        *_constants(epilogue),
        ("sums", "int32", result.channels),
    ]

    def body(output: tirx.Buffer, values: tirx.Buffer, *rest: tirx.Buffer) -> None:
        rows, columns, kind, narrow, wide, sums = rest
        with loop(batch) as n, loop(result.height) as h, loop(result.width) as w:
            entry = kind[h * result.width + w]
            with loop(result.channels) as c:
                store(sums, c, narrow[entry])
            with tb.serial(rows[h * 2], rows[h * 2 + 1]) as y, tb.serial(columns[w * 2], columns[w * 2 + 1]) as x:
                at = n * source.elements + (y * source.width + x) * source.stride
                with loop(result.channels) as c:
                    store(sums, c, sums[c] + values[at + c].astype("int32"))
            start = n * result.elements + (h * result.width + w) * result.stride
            with loop(result.channels) as c:
                _finish(epilogue, output, start + c, sums[c], entry, (narrow, wide))

    bins = (node.rows.ravel(), node.columns.ravel(), node.kind.ravel())
    return Kernel("avgpool.plain", kernel_function(parameters, body), (*bins, *constants), (4 * result.channels,))


def _max_pool2d(node: MaxPool2d, source: Layout, result: Layout, batch: int) -> Kernel:
    lowest = tirx.const(STORED_RANGE[source.dtype][0], source.dtype)

    def body(output: tirx.Buffer, values: tirx.Buffer) -> None:
        with loop(batch) as n, loop(result.height) as h, loop(result.width) as w:
            start = n * result.elements + (h * result.width + w) * result.stride
            with loop(result.channels) as c:
                store(output, start + c, lowest)
            with loop(node.kernel[0]) as kh, loop(node.kernel[1]) as kw:
                y = h * node.stride[0] + kh * node.dilation[0] - node.padding[0]
                x = w * node.stride[1] + kw * node.dilation[1] - node.padding[1]
                with when(tirx.all(y >= 0, y < source.height, x >= 0, x < source.width)):
                    at = n * source.elements + (y * source.width + x) * source.stride
                    with loop(result.channels) as c:
                        store(output, start + c, tirx.max(output[start + c], values[at + c]))

    parameters = [("result", result.dtype, batch * result.elements), ("source", source.dtype, batch * source.elements)]
    return Kernel("maxpool.plain", kernel_function(parameters, body))
