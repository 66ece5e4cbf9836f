"""Operators that compute: quantize and dequantize, convolution and linear, sums, clamps, normalisation."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import torch

from intcert.compile.frontend.builder import GraphBuilder
from intcert.compile.frontend.calls import Call, operator, shown
from intcert.compile.frontend.values import Codes, Joined, Output, Pending, Pixels, Value, Weight
from intcert.compile.nodes import Conv2d, Linear
from intcert.compile.requantize import Quantization, weighted_accumulator
from intcert.runtime.errors import ModelError

_ATEN = torch.ops.aten
_QUANTIZED = torch.ops.quantized_decomposed
_DTYPES = {torch.int8: "int8", torch.uint8: "uint8"}
_CONSTANTS = (int, float, torch.Tensor)


# --- quantize and dequantize -----------------------------------------------------------------------------------------


def _number(argument: Any, what: str) -> float:
    if isinstance(argument, torch.Tensor) and argument.numel() == 1:
        return argument.item()
    if isinstance(argument, int | float):
        return argument
    raise ModelError(f"{what} is computed at run time: dynamic quantization; quantize activations statically")


def _code(call: Call) -> Quantization:
    scale = float(_number(call["scale"], "the scale"))
    if not 0 < scale < float("inf"):
        raise ModelError(f"scale {scale} is not a positive number; calibrate the model with real images")
    low, high = int(_number(call["quant_min"], "quant_min")), int(_number(call["quant_max"], "quant_max"))
    return Quantization(Fraction(scale), int(_number(call["zero_point"], "the zero point")), (low, high))


def _stored_dtype(dtype: torch.dtype) -> str:
    if dtype not in _DTYPES:
        raise ModelError(f"quantizes to {dtype}; only torch.int8 and torch.uint8 have kernels")
    return _DTYPES[dtype]


@operator(_QUANTIZED.quantize_per_tensor.default, _QUANTIZED.quantize_per_tensor.tensor)
def _quantize(call: Call) -> Codes:
    return Codes(call.graph.quantize(call.value("input"), Output(_code(call), _stored_dtype(call["dtype"]))))


@operator(_QUANTIZED.dequantize_per_tensor.default, _QUANTIZED.dequantize_per_tensor.tensor)
def _dequantize(call: Call) -> Value | Weight | torch.Tensor:
    source, code = call["input"], _code(call)
    if isinstance(source, Codes):
        return Value(call.name, terms=(call.graph.read(source.index, code),))
    if not isinstance(source, torch.Tensor):
        raise ModelError("dequantizes what no quantize node gave; quantize it first")
    if source.dtype == torch.int8 and source.dim() > 1:
        return _weight(source, torch.full((len(source),), float(code.scale), dtype=torch.float64), code.zero_point)
    return (source.double() - code.zero_point) * float(code.scale)


@operator(_QUANTIZED.dequantize_per_channel.default)
def _dequantize_channels(call: Call) -> Weight | torch.Tensor:
    source, scales, zero_points = call["input"], call["scales"], call["zero_points"]
    if not isinstance(source, torch.Tensor) or not isinstance(scales, torch.Tensor):
        raise ModelError("quantizes activations per channel; quantize them per tensor")
    zeros = torch.zeros_like(scales) if zero_points is None else zero_points
    if source.dim() > 1 and int(call["axis"]) != 0:
        raise ModelError(f"weights are quantized along axis {call['axis']}; quantize them along the output channels, 0")
    if source.dtype == torch.int8 and source.dim() > 1:
        return _weight(source, scales.double(), zeros)
    return (source.double() - zeros) * scales.double()


def _weight(codes: torch.Tensor, scale: torch.Tensor, zero_point: Any) -> Weight:
    if bool((torch.as_tensor(zero_point) != 0).any()):
        raise ModelError("weights have a zero point; quantize them symmetrically")
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise ModelError("weights have a scale that is not a positive number; quantize the model again")
    return Weight(codes.numpy(), scale.numpy())


# --- convolution and linear ------------------------------------------------------------------------------------------


def _parameters(call: Call) -> tuple[Weight, np.ndarray | None]:
    weight, bias = call["weight"], call["bias"]
    if not isinstance(weight, Weight):
        raise ModelError("weights are not quantized to int8; let the quantizer annotate this operator")
    if bias is not None and not isinstance(bias, torch.Tensor):
        raise ModelError("the bias does not come from a constant; fold it before quantizing")
    return weight, None if bias is None else bias.double().numpy()


def _convolve(call: Call, padding: tuple[int, int, int, int]) -> Value:
    source = call.graph.store(call.value("input"))
    parameters, bias = _parameters(call)
    weight = np.ascontiguousarray(parameters.weight.transpose(0, 2, 3, 1))
    zero, (low, high) = source.code.zero_point, source.code.range
    padded = replace(source.code, range=(min(low, zero), max(high, zero)))
    stride, dilation, groups = call.pair("stride"), call.pair("dilation"), int(call["groups"])

    def build(bias: np.ndarray, requant: Any, clamp: Any, terms: tuple[int, ...]) -> Conv2d:
        return Conv2d(
            source.index, weight, bias, stride, padding, dilation, groups, zero, requant, clamp, terms
        )  # fmt: skip

    accumulator = weighted_accumulator(weight, parameters.scale, bias, padded)
    return Value(call.name, Pending(build, accumulator, "weights"))


@operator(_ATEN.conv2d.default)
def _conv2d(call: Call) -> Value:
    vertical, horizontal = call.pair("padding")
    return _convolve(call, (vertical, horizontal, vertical, horizontal))


@operator(_ATEN.conv2d.padding)
def _conv2d_named_padding(call: Call) -> Value:
    if call["padding"] == "valid":
        return _convolve(call, (0, 0, 0, 0))
    kernel = _parameters(call)[0].weight.shape[2:]
    total = [d * (k - 1) for d, k in zip(call.pair("dilation"), kernel, strict=True)]
    # PyTorch puts the odd row and column of "same" behind the image.
    return _convolve(call, (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2))


@operator(_ATEN.linear.default)
def _linear(call: Call) -> Value:
    if len(call.input_shape) != 1:
        raise ModelError(f"is applied to {shown(call.input_shape)}; flatten its input to a vector")
    source = call.graph.store(call.value("input"))
    parameters, bias = _parameters(call)

    def build(bias: np.ndarray, requant: Any, clamp: Any, terms: tuple[int, ...]) -> Linear:
        return Linear(source.index, parameters.weight, bias, requant, clamp, terms)

    accumulator = weighted_accumulator(parameters.weight, parameters.scale, bias, source.code)
    return Value(call.name, Pending(build, accumulator, "weights"))


@operator(_ATEN.batch_norm.default)
def _batch_norm(call: Call) -> Value:
    raise ModelError(
        "batch normalization is not folded; put it directly behind a convolution and switch the prepared model to eval "
        "mode before convert_pt2e"
    )


# --- sums, clamps, normalisation -------------------------------------------------------------------------------------


@operator(_ATEN.add.Tensor, _ATEN.add_.Tensor)
def _add(call: Call) -> Value:
    left, right = call["self"], call["other"]
    if call["alpha"] != 1:
        raise ModelError(f"adds {call['alpha']} times its second operand; scale it by a convolution instead")
    if not isinstance(left, Value) or not isinstance(right, Value):
        value, constant = (left, right) if isinstance(left, Value) else (right, left)
        if isinstance(value, Value) and isinstance(constant, int | float) and constant == 0:
            return replace(value, name=call.name)  # Python's sum() starts with 0
        return _affine(call, value, 1, constant)
    for operand in (left, right):
        if isinstance(operand.head, Pixels):
            raise ModelError("adds the image itself; put a quantize node behind the normalisation")
    left, right = _addable(call.graph, left), _addable(call.graph, right)
    if left.head is not None and right.head is not None:
        raise ModelError(
            f"adds two accumulators ({left.name} and {right.name}); put a quantize node behind one of them"
        )
    return Value(call.name, left.head or right.head, left.terms + right.terms)


def _addable(graph: GraphBuilder, operand: Value) -> Value:
    if isinstance(operand.head, Joined) or (isinstance(operand.head, Pending) and operand.head.source == "pool"):
        raise ModelError(f"adds {operand.name} in float; put a quantize node behind it")
    if operand.is_open:
        return operand
    return Value(operand.name, terms=(graph.store(operand),))


def _affine(call: Call, value: Any, factor: Any, constant: Any, divide: bool = False) -> Value:
    """``factor * value + constant`` for the image, or ``value / factor + constant``: its normalisation, exactly."""
    if isinstance(value, Codes):
        raise ModelError("works on a quantized tensor directly; put a dequantize node in front of it")
    if not isinstance(value, Value) or not isinstance(value.head, Pixels) or not value.is_open:
        raise ModelError(
            "computes with a constant in float; only the normalisation of the image, in front of the first quantize "
            "node, may do so"
        )
    pixels = value.head
    factors, constants = (_per_channel(c, len(pixels.scale), len(call.shape)) for c in (factor, constant))
    if divide:
        if 0 in factors:
            raise ModelError("divides by 0; correct the standard deviation of the normalisation")
        factors = [1 / f for f in factors]
    return Value(
        call.name,
        Pixels(
            tuple(s * f for s, f in zip(pixels.scale, factors, strict=True)),
            tuple(o * f + c for o, f, c in zip(pixels.offset, factors, constants, strict=True)),
        ),
    )


def _per_channel(constant: Any, channels: int, rank: int) -> list[Fraction]:
    """A number or a tensor that broadcasts along the channel axis alone, as exact rationals."""
    if not isinstance(constant, _CONSTANTS):
        raise ModelError("its constant is not known before run time; use numbers or buffers")
    if not isinstance(constant, torch.Tensor):
        return [Fraction(constant)] * channels
    shape = (1,) * (rank + 1 - constant.dim()) + tuple(constant.shape)
    if len(shape) != rank + 1 or shape[1] not in (1, channels) or prod(shape) != shape[1]:
        raise ModelError(f"its constant has shape {list(constant.shape)}; normalise with one number a channel")
    values = [Fraction(float(v)) for v in constant.double().flatten()]
    return values * channels if len(values) == 1 else values


@operator(_ATEN.sub.Tensor, _ATEN.sub_.Tensor)
def _subtract(call: Call) -> Value:
    return _difference(call, call["self"], call["other"])


@operator(_ATEN.rsub.Scalar, _ATEN.rsub.Tensor)
def _subtract_from(call: Call) -> Value:
    return _difference(call, call["other"], call["self"])


def _difference(call: Call, minuend: Any, subtrahend: Any) -> Value:
    if call["alpha"] != 1 or (isinstance(minuend, Value) and isinstance(subtrahend, Value)):
        raise ModelError("subtracts activations; only residual additions have an integer form")
    if isinstance(minuend, Value):
        return _affine(call, minuend, 1, -subtrahend if isinstance(subtrahend, _CONSTANTS) else subtrahend)
    return _affine(call, subtrahend, -1, minuend)


@operator(_ATEN.mul.Tensor, _ATEN.mul_.Tensor)
def _multiply(call: Call) -> Value:
    left, right = call["self"], call["other"]
    if isinstance(left, Value) and isinstance(right, Value):
        raise ModelError("multiplies activations; that has no integer form here")
    value, constant = (left, right) if isinstance(left, Value) else (right, left)
    return _affine(call, value, constant, 0)


@operator(_ATEN.div.Tensor, _ATEN.div_.Tensor)
def _divide(call: Call) -> Value:
    value, divisor = call["self"], call["other"]
    if isinstance(divisor, Value):
        raise ModelError("divides by an activation; that has no integer form here")
    return _affine(call, value, divisor, 0, divide=True)


def _bound(value: Any) -> Fraction | None:
    return None if value is None or value in (float("inf"), -float("inf")) else Fraction(value)


@operator(_ATEN.relu.default, _ATEN.relu_.default)
def _relu(call: Call) -> Value:
    return replace(call.value("self").clamped(Fraction(0), None), name=call.name)


@operator(_ATEN.relu6.default, _ATEN.relu6_.default)
def _relu6(call: Call) -> Value:
    return replace(call.value("self").clamped(Fraction(0), Fraction(6)), name=call.name)


@operator(_ATEN.hardtanh.default, _ATEN.hardtanh_.default)
def _hardtanh(call: Call) -> Value:
    return replace(call.value("self").clamped(_bound(call["min_val"]), _bound(call["max_val"])), name=call.name)


@operator(_ATEN.clamp.default, _ATEN.clamp_.default, _ATEN.clamp_min.default, _ATEN.clamp_min_.default)
def _clamp(call: Call) -> Value:
    bounds = _bound(call["min"]), _bound(call.arguments.get("max"))
    return replace(call.value("self").clamped(*bounds), name=call.name)
