"""Shape, dtype, value range and overflow rules of every node kind.

``infer`` is called while an IntegerGraph is built: it either returns what the node's result looks like, or raises
ModelError saying which rule is broken. The bounds proven here are what lets kernels use 16- and 32-bit arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from math import prod

import numpy as np

from intcert.compile.nodes import (
    INPUT_RANGE,
    STORED_RANGE,
    Add,
    AvgPool2d,
    Clamp,
    Concat,
    Conv2d,
    Flatten,
    InputQuantize,
    Linear,
    LogitScale,
    MaxPool2d,
    Node,
    Pad,
    Range,
    Requant,
    RequantQ15,
    RequantQ31,
    Shape,
    Slice,
    require,
    require_array,
)

ACCUMULATOR_LIMIT = 2**31


@dataclass(frozen=True)
class TensorInfo:
    """Shape without batch, dtype, and the least and greatest value that a node's result can hold."""

    shape: Shape
    dtype: str
    range: Range


def window_count(extent: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    """Number of windows along one axis."""
    return (extent + before + after - dilation * (kernel - 1) - 1) // stride + 1


def input_scale(scheme: str) -> int:
    """Factor on pixel + noise before its bias: 16 in q15, 2**8 in q31."""
    return 16 if scheme == "q15" else 256


def _magnitude(bounds: Range) -> int:
    return max(-bounds[0], bounds[1])


def _image(info: TensorInfo) -> tuple[int, int, int]:
    require(len(info.shape) == 3, f"needs an (H, W, C) operand, not {info.shape}")
    return info.shape


def _stored(info: TensorInfo) -> None:
    require(info.dtype in STORED_RANGE, f"reads {info.dtype} logits as if they were an activation")


def _requantized(
    requant: Requant | LogitScale,
    clamp: Clamp | None,
    channels: int,
    accumulator: np.ndarray,
    terms: list[TensorInfo],
    shape: Shape,
    scheme: str,
) -> TensorInfo:
    """Rules common to every node that ends in a requantization. accumulator: int64[channels], bounds of |acc|."""
    if isinstance(requant, LogitScale):
        require(clamp is None and not terms, "logits are neither clamped nor added to")
        require(requant.channels == channels, f"has {requant.channels} logit scales for {channels} channels")
        reach = accumulator.astype(object) * requant.multiplier.astype(object) + abs(requant.rounding.astype(object))
        top = int(max(reach)) >> 30
        require(top < ACCUMULATOR_LIMIT, f"logits reach {top}, over 32 bits")
        return TensorInfo(shape, "int32", (-top - 1, top))
    wanted = RequantQ15 if scheme == "q15" else RequantQ31
    require(isinstance(requant, wanted), f"carries {type(requant).__name__} in a graph of scheme {scheme}")
    require(clamp is not None, "has no clamp")
    require(requant.channels == channels, f"has {requant.channels} multipliers for {channels} channels")
    for term in terms:
        _stored(term)
        require(term.shape == shape, f"adds a term of shape {term.shape} to {shape}")
    require(
        len(requant.term_multipliers) == len(terms),
        f"has {len(requant.term_multipliers)} scales for {len(terms)} terms",
    )
    ranges = [term.range for term in terms]
    if isinstance(requant, RequantQ15):
        requant.check_terms(ranges)
    else:
        requant.check_sum(accumulator, ranges)
    return TensorInfo(shape, clamp.dtype, (clamp.lo, clamp.hi))


def _accumulator_bound(weight: np.ndarray, bias: np.ndarray, bounds: Range) -> np.ndarray:
    """int64[O]: bound of every partial and total sum; raises ModelError where it passes 31 bits."""
    total = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(1) * _magnitude(bounds) + np.abs(
        bias.astype(np.int64)
    )
    worst = int(total.argmax())
    require(
        int(total[worst]) < ACCUMULATOR_LIMIT,
        f"the accumulator of channel {worst} can reach {total[worst]}, over 2**31; use fewer input channels",
    )
    return total


@singledispatch
def infer(node: Node, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    """Result of a node, given its operands in the order of ``nodes.operands``. Raises ModelError."""
    raise TypeError(f"{type(node).__name__} is not a node kind")


@infer.register
def _(node: InputQuantize, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    channels = input_shape[2]
    require_array("bias", node.bias, "int32", 1)
    require(len(node.bias) == channels, f"has {len(node.bias)} biases for {channels} channels")
    if isinstance(node.requant, RequantQ15):
        require(not node.requant.shift.any(), "the q15 input is not shifted")
        require(
            bool((np.abs(node.bias.astype(np.int64)) < 2**15).all()),
            "the q15 input bias does not fit 16 bits",
        )
    reach = _magnitude(INPUT_RANGE) * input_scale(scheme) + np.abs(node.bias.astype(np.int64))
    return _requantized(node.requant, node.clamp, channels, reach, [], input_shape, scheme)


@infer.register
def _(node: Conv2d, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    source, terms = operands[0], operands[1:]
    height, width, channels = _image(source)
    _stored(source)
    require_array("weight", node.weight, "int8", 4)
    require_array("bias", node.bias, "int32", 1)
    outputs, kernel_h, kernel_w, per_group = node.weight.shape
    require(min(*node.stride, *node.dilation, node.groups) > 0, "stride, dilation and groups are positive")
    require(min(node.padding) >= 0, f"padding {node.padding} is negative")
    require(
        channels == per_group * node.groups and outputs % node.groups == 0,
        f"weight {node.weight.shape} in {node.groups} groups does not fit {channels} input channels",
    )
    require(len(node.bias) == outputs, f"has {len(node.bias)} biases for {outputs} channels")
    least, most = STORED_RANGE[source.dtype]
    require(least <= node.pad_value <= most, f"pad value {node.pad_value} does not fit {source.dtype}")
    top, left, bottom, right = node.padding
    shape = (
        window_count(height, kernel_h, node.stride[0], top, bottom, node.dilation[0]),
        window_count(width, kernel_w, node.stride[1], left, right, node.dilation[1]),
        outputs,
    )
    require(min(shape) > 0, f"kernel {kernel_h}x{kernel_w} is larger than its padded input {height}x{width}")
    bounds = (min(source.range[0], node.pad_value), max(source.range[1], node.pad_value))
    reach = _accumulator_bound(node.weight, node.bias, bounds)
    return _requantized(node.requant, node.clamp, outputs, reach, terms, shape, scheme)


@infer.register
def _(node: Linear, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    source, terms = operands[0], operands[1:]
    require(len(source.shape) == 1, f"needs a vector, not {source.shape}")
    _stored(source)
    require_array("weight", node.weight, "int8", 2)
    require_array("bias", node.bias, "int32", 1)
    outputs, inputs = node.weight.shape
    require(inputs == source.shape[0], f"weight {node.weight.shape} does not fit {source.shape[0]} inputs")
    require(len(node.bias) == outputs, f"has {len(node.bias)} biases for {outputs} outputs")
    reach = _accumulator_bound(node.weight, node.bias, source.range)
    return _requantized(node.requant, node.clamp, outputs, reach, terms, (outputs,), scheme)


@infer.register
def _(node: Add, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    require(len(operands) > 0, "adds nothing")
    return _requantized(node.requant, node.clamp, 0, np.zeros(0, np.int64), operands, operands[0].shape, scheme)


@infer.register
def _(node: AvgPool2d, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    (source,) = operands
    height, width, channels = _image(source)
    _stored(source)
    for name, bins, extent in (("rows", node.rows, height), ("columns", node.columns, width)):
        require_array(name, bins, "int32", 2)
        require(
            bins.shape[1:] == (2,) and len(bins) > 0 and bool((bins[:, 0] >= 0).all())
            and bool((bins[:, 0] < bins[:, 1]).all()) and bool((bins[:, 1] <= extent).all()),
            f"{name} are not half-open bins within {extent}",
        )  # fmt: skip
    require_array("kind", node.kind, "int32", 2)
    require_array("bias", node.bias, "int32", 1)
    require(node.kind.shape == (len(node.rows), len(node.columns)), "kind does not fit rows and columns")
    require(node.kind.min() >= 0 and node.kind.max() < len(node.bias), "kind points outside bias")
    summed = int(np.diff(node.rows).max()) * int(np.diff(node.columns).max())
    scale = 1 if scheme == "q15" else 256
    reach = (np.abs(node.bias.astype(np.int64)) + summed * _magnitude(source.range)) * scale
    require(int(reach.max()) < ACCUMULATOR_LIMIT * scale, f"a sum of {summed} values passes 31 bits")
    shape = (len(node.rows), len(node.columns), channels)
    return _requantized(node.requant, node.clamp, len(node.bias), reach, [], shape, scheme)


@infer.register
def _(node: MaxPool2d, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    (source,) = operands
    height, width, channels = _image(source)
    _stored(source)
    top, left, bottom, right = node.padding
    require(min(*node.kernel, *node.stride, *node.dilation) > 0, "kernel, stride and dilation are positive")
    for before, after, kernel in ((top, bottom, node.kernel[0]), (left, right, node.kernel[1])):
        require(0 <= before < kernel and after >= 0, f"padding {node.padding} does not fit kernel {node.kernel}")
    shape = (
        window_count(height, node.kernel[0], node.stride[0], top, bottom, node.dilation[0]),
        window_count(width, node.kernel[1], node.stride[1], left, right, node.dilation[1]),
        channels,
    )
    require(min(shape) > 0, f"kernel {node.kernel} is larger than its padded input {height}x{width}")
    # A window of padding alone holds the dtype's minimum.
    return TensorInfo(shape, source.dtype, (STORED_RANGE[source.dtype][0], source.range[1]))


@infer.register
def _(node: Concat, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    require(len(operands) > 0, "joins nothing")
    first = operands[0]
    _stored(first)
    for other in operands:
        require(
            other.dtype == first.dtype and other.shape[:-1] == first.shape[:-1],
            f"joins {other.dtype} {other.shape} to {first.dtype} {first.shape}",
        )
    shape = (*first.shape[:-1], sum(o.shape[-1] for o in operands))
    return TensorInfo(shape, first.dtype, (min(o.range[0] for o in operands), max(o.range[1] for o in operands)))


@infer.register
def _(node: Slice, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    (source,) = operands
    _image(source)
    _stored(source)
    for start, stop, step, extent in zip(node.start, node.stop, node.step, source.shape, strict=True):
        require(0 <= start < stop <= extent and step > 0, f"slice {start}:{stop}:{step} does not fit {extent}")
    shape = tuple(len(range(*bounds)) for bounds in zip(node.start, node.stop, node.step, strict=True))
    return TensorInfo(shape, source.dtype, source.range)


@infer.register
def _(node: Pad, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    (source,) = operands
    _image(source)
    _stored(source)
    least, most = STORED_RANGE[source.dtype]
    require(least <= node.value <= most, f"pad value {node.value} does not fit {source.dtype}")
    require(min(*node.before, *node.after) >= 0, "padding is negative")
    shape = tuple(b + n + a for b, n, a in zip(node.before, source.shape, node.after, strict=True))
    return TensorInfo(shape, source.dtype, (min(source.range[0], node.value), max(source.range[1], node.value)))


@infer.register
def _(node: Flatten, operands: list[TensorInfo], input_shape: Shape, scheme: str) -> TensorInfo:
    (source,) = operands
    return TensorInfo((prod(source.shape),), source.dtype, source.range)
