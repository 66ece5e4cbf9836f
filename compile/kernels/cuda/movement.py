"""Kernels that only move elements, one thread each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.kernels.base import Expr, Kernel, store, when
from intcert.compile.kernels.cuda.base import PER_SAMPLE, Parameters, per_item
from intcert.compile.layout import Layout
from intcert.compile.nodes import Pad, Slice


def concat(sources: list[Layout], result: Layout) -> Kernel:
    """Kernel that puts the channels of its operands side by side."""
    return Kernel("concat", _concat_function(tuple(sources), result))


@cache
def _concat_function(sources: tuple[Layout, ...], result: Layout) -> tirx.PrimFunc:
    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, *inputs = buffers
        pixel, channel = item // result.channels, item % result.channels
        begin = 0
        for layout, source in zip(sources, inputs, strict=True):
            with when(tirx.all(begin <= channel, channel < begin + layout.channels)):
                store(output, pixel * result.stride + channel, source[pixel * layout.stride + channel - begin])
            begin += layout.channels

    return _per_element(list(sources), result, body)


def slice_(node: Slice, source: Layout, result: Layout) -> Kernel:
    """Kernel that keeps every step-th row, column and channel."""
    return Kernel("slice", _slice_function(node.start, node.step, source, result))


@cache
def _slice_function(start: tuple[int, ...], step: tuple[int, ...], source: Layout, result: Layout) -> tirx.PrimFunc:
    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, values = buffers
        sample, *position = _position(item, result)
        read = [first + i * by for first, i, by in zip(start, position, step, strict=True)]
        store(output, _at(result, sample, *position), values[_at(source, sample, *read)])

    return _per_element([source], result, body)


def pad(node: Pad, source: Layout, result: Layout) -> Kernel:
    """Kernel that surrounds an image, or its channels, with a constant."""
    return Kernel("pad", _pad_function(node.before, node.value, source, result))


@cache
def _pad_function(before: tuple[int, ...], value: int, source: Layout, result: Layout) -> tirx.PrimFunc:
    extents = (source.height, source.width, source.channels)

    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, values = buffers
        sample, *position = _position(item, result)
        read = [i - first for i, first in zip(position, before, strict=True)]
        inside = tirx.all(*(tirx.all(i >= 0, i < extent) for i, extent in zip(read, extents, strict=True)))
        at = _at(result, sample, *position)
        with tb.If(inside):
            with tb.Then():
                store(output, at, values[_at(source, sample, *read)])
            with tb.Else():
                store(output, at, tirx.const(value, result.dtype))

    return _per_element([source], result, body)


def flatten(source: Layout, result: Layout) -> Kernel:
    """Kernel that turns an image into a vector in PyTorch's order: channel, row, column."""
    return Kernel("flatten", _flatten_function(source, result))


@cache
def _flatten_function(source: Layout, result: Layout) -> tirx.PrimFunc:
    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        output, values = buffers
        sample, h, w, c = _position(item, source)
        position = (c * source.height + h) * source.width + w
        store(output, sample * result.elements + position, values[_at(source, sample, h, w, c)])

    return _per_element([source], result, body)


def load_samples(dimension: int) -> Kernel:
    """Kernel that copies a chunk of pixel + noise into the arena.

    Result: int16[samples, dimension]. Operand: the caller's samples, int16[n, dimension]. Scalar: how many of them
    came before this chunk.
    """
    return Kernel("load", _load_function(dimension))


@cache
def _load_function(dimension: int) -> tirx.PrimFunc:
    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        pixels, samples = buffers
        store(pixels, item, samples[scalars[1] * dimension + item.astype("int64")])

    parameters = [("pixels", "int16", PER_SAMPLE), ("values", "int16", PER_SAMPLE)]
    return per_item(parameters, dimension, body, (("before", "int64"),))


def store_logits(logits: Layout) -> Kernel:
    """Kernel that copies a chunk of logits out, as int32[n, classes]. Scalar as in ``load_samples``."""
    return Kernel("store", _store_function(logits))


@cache
def _store_function(logits: Layout) -> tirx.PrimFunc:
    def body(item: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        out, values = buffers
        sample, channel = item // logits.channels, item % logits.channels
        value = values[sample * logits.stride + channel].astype("int32")
        store(out, scalars[1] * logits.channels + item.astype("int64"), value)

    parameters = [("out", "int32", PER_SAMPLE), ("logits", logits.dtype, PER_SAMPLE)]
    return per_item(parameters, logits.channels, body, (("before", "int64"),))


def _position(item: Expr, layout: Layout) -> tuple[Expr, Expr, Expr, Expr]:
    """Sample, row, column and channel of an element's number, spare channels not counted."""
    pixel = item // layout.channels
    image = layout.height * layout.width
    return pixel // image, pixel % image // layout.width, pixel % layout.width, item % layout.channels


def _at(layout: Layout, n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
    return n * layout.elements + (h * layout.width + w) * layout.stride + c


def _per_element(sources: list[Layout], result: Layout, body: Callable[..., None]) -> tirx.PrimFunc:
    parameters: Parameters = [("result", result.dtype, PER_SAMPLE)]
    parameters += [(f"source{j}", layout.dtype, PER_SAMPLE) for j, layout in enumerate(sources)]
    return per_item(parameters, result.height * result.width * result.channels, body)
