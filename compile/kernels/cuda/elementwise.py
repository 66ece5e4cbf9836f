"""One thread a word of four channels: input quantization, sums, pooling, grouped and depthwise convolution."""

from __future__ import annotations

from functools import cache

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.infer import input_scale
from intcert.compile.kernels.base import Expr, Kernel, loop, store, when
from intcert.compile.kernels.cuda.base import (
    PER_SAMPLE,
    WORD,
    activations,
    byte,
    finish,
    pack,
    per_item,
    registers,
)
from intcert.compile.kernels.epilogue import Epilogue, plan_epilogue
from intcert.compile.layout import Layout
from intcert.compile.nodes import STORED_RANGE, Add, AvgPool2d, Conv2d, InputQuantize, MaxPool2d


def input_quantize(node: InputQuantize, result: Layout, scheme: str) -> Kernel:
    """Kernel of the first node. Its operand is pixel + noise, int16[samples, H, W, C], without spare channels.

    Spare channels of a pixel's last word become 0, spare words stay as they are.
    """
    epilogue, constants = plan_epilogue(node.requant, node.clamp, node.bias, (), result.channels)
    return Kernel("quantize", _input_function(epilogue, result, input_scale(scheme)), constants)


@cache
def _input_function(epilogue: Epilogue, result: Layout, scale: int) -> tirx.PrimFunc:
    channels = result.channels
    words = -(-channels // WORD)

    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, source, narrow, wide = buffers
        pixel, word = item // words, item % words
        quantized = registers(WORD, "int32")
        for j in range(WORD):
            store(quantized, j, tirx.const(0, "int32"))
            channel = word * WORD + j
            with when(channel < channels if words * WORD > channels else None):
                value = source[pixel * channels + channel].astype("int32") * scale + narrow[channel]
                store(quantized, j, finish(epilogue, value, [], channel, (narrow, wide)).astype("int32"))
        store(output, pixel * (result.stride // WORD) + word, pack([quantized[j] for j in range(WORD)]))

    parameters = [
        activations("result", result),
        ("source", "int16", PER_SAMPLE),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]
    return per_item(parameters, result.height * result.width * words, body)


def add(node: Add, terms: list[Layout], result: Layout) -> Kernel:
    """Kernel of a requantized sum of stored tensors, whose constants serve all channels."""
    dtypes = tuple(term.dtype for term in terms)
    epilogue, constants = plan_epilogue(node.requant, node.clamp, np.zeros(0, np.int32), dtypes, 1)
    return Kernel("add", _add_function(epilogue, result), constants)


@cache
def _add_function(epilogue: Epilogue, result: Layout) -> tirx.PrimFunc:
    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, *terms, narrow, wide = buffers
        values = [
            finish(
                epilogue,
                None,
                [byte(term[item], j, dtype) for term, dtype in zip(terms, epilogue.terms, strict=True)],
                0,
                (narrow, wide),
            )
            for j in range(WORD)
        ]
        store(output, item, pack(values))

    parameters = [
        activations("result", result),
        *((f"term{j}", "uint32", PER_SAMPLE) for j in range(len(epilogue.terms))),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]
    return per_item(parameters, result.elements // WORD, body)


def avg_pool2d(node: AvgPool2d, source: Layout, result: Layout, scheme: str) -> Kernel:
    """Kernel of an average: the bins are data, read at run time."""
    epilogue, constants = plan_epilogue(
        node.requant, node.clamp, node.bias, (), len(node.bias), 0 if scheme == "q15" else 8
    )
    bins = (node.rows.ravel(), node.columns.ravel(), node.kind.ravel())
    return Kernel("avgpool", _average_function(epilogue, source, result), (*bins, *constants))


@cache
def _average_function(epilogue: Epilogue, source: Layout, result: Layout) -> tirx.PrimFunc:
    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, values, rows, columns, kind, narrow, wide = buffers
        sample, h, w, word = _position(item, result)
        which = registers(1, "int32")
        store(which, 0, kind[h * result.width + w])
        total = registers(WORD, "int32")
        for j in range(WORD):
            store(total, j, narrow[which[0]])
        with tb.serial(rows[h * 2], rows[h * 2 + 1]) as y, tb.serial(columns[w * 2], columns[w * 2 + 1]) as x:
            at = _word_at(source, sample, y, x, word)
            for j in range(WORD):
                store(total, j, total[j] + byte(values[at], j, source.dtype))
        results = [finish(epilogue, total[j], [], which[0], (narrow, wide)) for j in range(WORD)]
        store(output, item, pack(results))

    parameters = [
        activations("result", result),
        activations("source", source),
        ("rows", "int32", result.height * 2),
        ("columns", "int32", result.width * 2),
        ("kind", "int32", result.height * result.width),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]
    return per_item(parameters, result.elements // WORD, body)


def max_pool2d(node: MaxPool2d, source: Layout, result: Layout) -> Kernel:
    """Kernel of a maximum; positions outside the source are skipped, which is what the dtype's minimum means."""
    function = _maximum_function(source, result, node.kernel, node.stride, node.padding[:2], node.dilation)
    return Kernel("maxpool", function)


@cache
def _maximum_function(
    source: Layout,
    result: Layout,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tirx.PrimFunc:
    lowest = STORED_RANGE[source.dtype][0]

    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, values = buffers
        sample, h, w, word = _position(item, result)
        best = registers(WORD, "int32")
        for j in range(WORD):
            store(best, j, tirx.const(lowest, "int32"))
        with loop(kernel[0]) as kh, loop(kernel[1]) as kw:
            y = h * stride[0] + kh * dilation[0] - padding[0]
            x = w * stride[1] + kw * dilation[1] - padding[1]
            with when(_inside(source, y, x)):
                at = _word_at(source, sample, y, x, word)
                for j in range(WORD):
                    store(best, j, tirx.max(best[j], byte(values[at], j, source.dtype)))
        store(output, item, pack([best[j] for j in range(WORD)]))

    return per_item([activations("result", result), activations("source", source)], result.elements // WORD, body)


def grouped_conv2d(node: Conv2d, source: Layout, terms: list[Layout], result: Layout) -> Kernel:
    """Kernel of a convolution with groups, depthwise ones included: plain multiplications, since the channels that an
    output sums are too few for a matrix instruction."""
    dtypes = tuple(term.dtype for term in terms)
    epilogue, constants = plan_epilogue(node.requant, node.clamp, node.bias, dtypes, result.stride)
    outputs, kernel_h, kernel_w, per_group = node.weight.shape
    weights = np.zeros((kernel_h, kernel_w, per_group, result.stride), np.int8)
    weights[..., :outputs] = np.moveaxis(node.weight, 0, -1)
    function = _grouped_function(
        epilogue,
        source,
        result,
        weights.shape,
        outputs // node.groups,
        node.stride,
        node.padding[:2],
        node.dilation,
        node.pad_value,
    )
    return Kernel("conv2d.grouped", function, (weights.ravel(), *constants))


@cache
def _grouped_function(
    epilogue: Epilogue,
    source: Layout,
    result: Layout,
    shape: tuple[int, ...],
    outputs_per_group: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    fill: int,
) -> tirx.PrimFunc:
    kernel_h, kernel_w, per_group, _ = shape
    logits = epilogue.scheme == "logits"

    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, values, *terms, weights, narrow, wide = buffers
        sample, h, w, word = _position(item, result)
        sums = registers(WORD, "int32")
        operand = registers(1, "int32")
        for j in range(WORD):
            store(sums, j, narrow[word * WORD + j])
        with loop(kernel_h) as kh, loop(kernel_w) as kw, loop(per_group) as i:
            y = h * stride[0] + kh * dilation[0] - padding[0]
            x = w * stride[1] + kw * dilation[1] - padding[1]
            for j in range(WORD):
                output_channel = word * WORD + j
                # Spare channels repeat the last group; nobody reads them.
                group = tirx.min(output_channel, result.channels - 1) // outputs_per_group
                channel = group * per_group + i
                store(operand, 0, tirx.const(fill, "int32"))
                with when(_inside(source, y, x)):
                    read = values[_word_at(source, sample, y, x, channel // WORD)]
                    store(operand, 0, byte(read, channel % WORD, source.dtype))
                at = ((kh * kernel_w + kw) * per_group + i) * result.stride + output_channel
                store(sums, j, sums[j] + operand[0] * weights[at].astype("int32"))
        results = [
            finish(
                epilogue,
                sums[j],
                [byte(term[item], j, dtype) for term, dtype in zip(terms, epilogue.terms, strict=True)],
                word * WORD + j,
                (narrow, wide),
            )
            for j in range(WORD)
        ]
        if logits:
            for j, value in enumerate(results):
                store(output, item * WORD + j, value)
        else:
            store(output, item, pack(results))

    parameters = [
        ("result", "int32" if logits else "uint32", PER_SAMPLE),
        activations("source", source),
        *((f"term{j}", "uint32", PER_SAMPLE) for j in range(len(epilogue.terms))),
        ("weights", "int8", int(np.prod(shape))),
        ("narrow", "int32", epilogue.narrow_size),
        ("wide", "int64", epilogue.wide_size),
    ]
    return per_item(parameters, result.elements // WORD, body)


def _position(item: Expr, layout: Layout) -> tuple[Expr, Expr, Expr, Expr]:
    """Sample, row, column and word of a word's number."""
    words = layout.stride // WORD
    pixel = item // words
    image = layout.height * layout.width
    return pixel // image, pixel % image // layout.width, pixel % layout.width, item % words


def _word_at(layout: Layout, sample: Expr, y: Expr, x: Expr, word: Expr) -> Expr:
    return ((sample * layout.height + y) * layout.width + x) * (layout.stride // WORD) + word


def _inside(layout: Layout, y: Expr, x: Expr) -> Expr:
    return tirx.all(y >= 0, y < layout.height, x >= 0, x < layout.width)
