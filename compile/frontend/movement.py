"""Operators that move data: identities, flattening, slices, padding, concatenation."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import prod

import torch

from intcert.compile.frontend.builder import GraphBuilder
from intcert.compile.frontend.calls import Call, operator, require_image, shown
from intcert.compile.frontend.values import Joined, Stored, Value
from intcert.compile.nodes import Concat, Flatten, Pad, Slice
from intcert.runtime.errors import ModelError

_ATEN = torch.ops.aten


@operator(
    _ATEN.contiguous.default,
    _ATEN.clone.default,
    _ATEN.detach.default,
    _ATEN.detach_.default,
    _ATEN.alias.default,
)
def _identity(call: Call) -> Value:
    return call.value("input" if "input" in call.arguments else "self")


@operator(
    _ATEN.dropout.default,
    _ATEN.dropout_.default,
    _ATEN.feature_dropout.default,
    _ATEN.feature_dropout_.default,
)
def _dropout(call: Call) -> Value:
    if call["train"] and call["p"] > 0:
        raise ModelError("dropout is in training mode; call move_exported_model_to_eval before convert_pt2e")
    return _identity(call)


@operator(
    _ATEN.flatten.using_ints,
    _ATEN.reshape.default,
    _ATEN.view.default,
    _ATEN.squeeze.default,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.dims,
)
def _flatten(call: Call) -> Value:
    value = call.value("self")
    flat = max(call.shape, default=1) == prod(call.shape)
    was_flat = len(call.input_shape) < 3
    if not call.keeps_batch or not (call.shape == call.input_shape or (flat and len(call.shape) < 3)):
        target = shown(call.shape) if call.keeps_batch else "another batch size"
        raise ModelError(
            f"reshapes {shown(call.input_shape)} to {target}; only flattening an image has an integer form"
        )
    if was_flat or call.shape == call.input_shape:
        return value
    return call.graph.move(value, lambda index, code: Flatten(index), call.name)


def _hwc(values: Iterable[int]) -> tuple[int, int, int]:
    channel, row, column = values
    return row, column, channel


@operator(_ATEN.slice.Tensor)
def _slice(call: Call) -> Value:
    value, axis = call.value("self"), int(call["dim"]) % (len(call.input_shape) + 1)
    extent = None if axis == 0 else call.input_shape[axis - 1]
    bounds = slice(call["start"], call["end"], call["step"])
    if axis == 0 and bounds.start in (None, 0) and bounds.step == 1 and call.keeps_batch:
        return value
    if extent is None:
        raise ModelError("slices the batch; a program must treat every image alike")
    start, stop, step = bounds.indices(extent)
    if (start, stop, step) == (0, extent, 1):
        return value
    require_image(call)
    starts, stops, steps = [0, 0, 0], list(call.input_shape), [1, 1, 1]
    starts[axis - 1], stops[axis - 1], steps[axis - 1] = start, stop, step
    corner = _hwc(starts), _hwc(stops), _hwc(steps)
    return call.graph.move(value, lambda index, code: Slice(index, *corner), call.name)


@operator(_ATEN.pad.default, _ATEN.constant_pad_nd.default)
def _pad(call: Call) -> Value:
    value = call.value("self")
    require_image(call)
    if call.arguments.get("mode", "constant") != "constant" or call["value"] not in (None, 0):
        raise ModelError("pads with something other than 0; only padding by 0 has an integer form")
    # (before, after) pairs, last axis first; torch may leave out the leading axes.
    amounts = [int(n) for n in call["pad"]]
    amounts += [0] * (8 - len(amounts))
    if min(amounts) < 0 or any(amounts[6:]):
        raise ModelError(f"pads by {call['pad']}; crop with a slice, and leave the batch alone")
    before, after = (_hwc(amounts[i:6:2][::-1]) for i in (0, 1))
    return call.graph.move(value, lambda index, code: Pad(index, before, after, code.zero_point), call.name)


@operator(_ATEN.cat.default, _ATEN.concat.default, _ATEN.concatenate.default)
def _concatenate(call: Call) -> Value:
    rank = len(call.shape) + 1
    pieces = call["tensors"]
    if call["dim"] % rank != 1 or not all(isinstance(piece, Value) for piece in pieces):
        raise ModelError(
            "joins along another axis than the channels, or joins constants; join activations along axis 1"
        )
    stored = [piece.stored for piece in pieces]
    if any(piece is None for piece in stored) or len({_meaning(call.graph, piece) for piece in stored}) > 1:
        return Value(call.name, Joined(tuple(pieces)))
    index = call.graph.emit(Concat(tuple(piece.index for piece in stored)), call.name)
    return Value(call.name, terms=(call.graph.read(index, stored[0].code),))


def _meaning(graph: GraphBuilder, stored: Stored) -> tuple[Fraction, int, str]:
    return stored.code.scale, stored.code.zero_point, graph.info[stored.index].dtype
