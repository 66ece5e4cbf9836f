"""Kernels that only move elements: concatenation, slicing, padding, flattening."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tvm import tirx

from intcert.compile.kernels.base import Expr, Kernel, kernel_function, loop, store
from intcert.compile.layout import Layout
from intcert.compile.nodes import Pad, Slice


def concat(sources: list[Layout], result: Layout, batch: int) -> Kernel:
    """Kernel that puts the channels of its operands side by side."""
    return Kernel("concat", _concat_function(tuple(sources), result, batch))


@cache
def _concat_function(sources: tuple[Layout, ...], result: Layout, batch: int) -> tirx.PrimFunc:
    pixels = batch * result.height * result.width

    def body(output: tirx.Buffer, *inputs: tirx.Buffer) -> None:
        begin = 0
        for layout, source in zip(sources, inputs, strict=True):
            with loop(pixels) as p, loop(layout.channels) as c:
                store(output, p * result.stride + begin + c, source[p * layout.stride + c])
            begin += layout.channels

    return _movement(list(sources), result, batch, body)


def slice_(node: Slice, source: Layout, result: Layout, batch: int) -> Kernel:
    """Kernel that keeps every step-th row, column and channel."""
    return Kernel("slice", _slice_function(node.start, node.step, source, result, batch))


@cache
def _slice_function(
    start: tuple[int, ...], step: tuple[int, ...], source: Layout, result: Layout, batch: int
) -> tirx.PrimFunc:
    def body(output: tirx.Buffer, values: tirx.Buffer) -> None:
        with loop(batch) as n, loop(result.height) as h, loop(result.width) as w, loop(result.channels) as c:
            y, x, z = (first + i * by for first, i, by in zip(start, (h, w, c), step, strict=True))
            store(output, _at(result, n, h, w, c), values[_at(source, n, y, x, z)])

    return _movement([source], result, batch, body)


def pad(node: Pad, source: Layout, result: Layout, batch: int) -> Kernel:
    """Kernel that surrounds an image, or its channels, with a constant."""
    return Kernel("pad", _pad_function(node.before, node.value, source, result, batch))


@cache
def _pad_function(before: tuple[int, ...], value: int, source: Layout, result: Layout, batch: int) -> tirx.PrimFunc:
    def body(output: tirx.Buffer, values: tirx.Buffer) -> None:
        with loop(batch * result.elements) as i:
            store(output, i, tirx.const(value, result.dtype))
        with loop(batch) as n, loop(source.height) as h, loop(source.width) as w, loop(source.channels) as c:
            y, x, z = (i + first for first, i in zip(before, (h, w, c), strict=True))
            store(output, _at(result, n, y, x, z), values[_at(source, n, h, w, c)])

    return _movement([source], result, batch, body)


def flatten(source: Layout, result: Layout, batch: int) -> Kernel:
    """Kernel that turns an image into a vector in PyTorch's order: channel, row, column."""
    return Kernel("flatten", _flatten_function(source, result, batch))


@cache
def _flatten_function(source: Layout, result: Layout, batch: int) -> tirx.PrimFunc:
    def body(output: tirx.Buffer, values: tirx.Buffer) -> None:
        with loop(batch) as n, loop(source.channels) as c, loop(source.height) as h, loop(source.width) as w:
            position = (c * source.height + h) * source.width + w
            store(output, n * result.elements + position, values[_at(source, n, h, w, c)])

    return _movement([source], result, batch, body)


def _at(layout: Layout, n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
    return n * layout.elements + (h * layout.width + w) * layout.stride + c


def _movement(sources: list[Layout], result: Layout, batch: int, body: Callable[..., None]) -> tirx.PrimFunc:
    parameters = [("result", result.dtype, batch * result.elements)]
    parameters += [(f"source{j}", layout.dtype, batch * layout.elements) for j, layout in enumerate(sources)]
    return kernel_function(parameters, body)
