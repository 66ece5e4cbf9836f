"""Kernels: one file a family, those for GPUs in ``cuda``. ``kernel_for`` chooses a node's by asking the target.

Convolutions and linear layers can be written in several ways; ``schedules_for`` lists them, and the tuner
(``intcert.compile.tune``) measures them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from intcert.compile.kernels import cuda
from intcert.compile.kernels.amx import amx_conv2d, amx_schedules
from intcert.compile.kernels.base import Kernel, Schedule
from intcert.compile.kernels.conv2d import conv2d, conv2d_schedules
from intcert.compile.kernels.depthwise import depthwise, depthwise_schedules
from intcert.compile.kernels.depthwise_dot import depthwise_dot, depthwise_dot_schedules, fits_depthwise_dot
from intcert.compile.kernels.elementwise import add, input_quantize
from intcert.compile.kernels.movement import concat, flatten, pad, slice_
from intcert.compile.kernels.pooling import avg_pool2d, max_pool2d
from intcert.compile.layout import Layout
from intcert.compile.nodes import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    InputQuantize,
    Linear,
    MaxPool2d,
    Node,
    Pad,
    Slice,
)
from intcert.targets import CudaTarget, Target

__all__ = ["Kernel", "Schedule", "kernel_for", "schedules_for"]


@dataclass(frozen=True)
class Family:
    """Convolution kernels of one kind: what writes one, and what lists the schedules that it takes."""

    kernel: Callable[..., Kernel]
    schedules: Callable[..., tuple[Schedule, ...]]


AMX = Family(amx_conv2d, amx_schedules)
DOT = Family(conv2d, conv2d_schedules)
DEPTHWISE = Family(depthwise, depthwise_schedules)
DEPTHWISE_DOT = Family(depthwise_dot, depthwise_dot_schedules)


def _family(node: Conv2d | Linear, source: Layout, result: Layout, batch: int, target: Target) -> Family:
    groups = getattr(node, "groups", 1)
    if groups > 1 and groups == source.channels == result.channels:
        return DEPTHWISE_DOT if fits_depthwise_dot(node, target) else DEPTHWISE
    if target.tile is None or groups > 1:
        return DOT
    # One row of a tile, or a single tile, is less work for the dot unit.
    is_small = batch == 1 or result.channels <= target.tile.columns
    return DOT if result.height * result.width == 1 and is_small else AMX


def schedules_for(
    node: Node, inputs: list[Layout], result: Layout, batch: int, target: Target | CudaTarget
) -> tuple[Schedule, ...]:
    """The schedules that ``kernel_for`` takes for a node, the one that it would choose first; none where there is no
    choice."""
    if isinstance(target, CudaTarget):
        return cuda.schedules_for(node, inputs, result, target)
    if not isinstance(node, Conv2d | Linear):
        return ()
    return _family(node, inputs[0], result, batch, target).schedules(node, inputs[0], result, batch, target)


def kernel_for(
    node: Node,
    inputs: list[Layout],
    result: Layout,
    batch: int,
    scheme: str,
    target: Target | CudaTarget,
    schedule: Schedule | None = None,
) -> Kernel:
    """Kernel of one node. inputs: layouts of its operands, in the order of ``nodes.operands``; batch: images that it
    works on, which on a GPU only its caller knows; schedule: one of ``schedules_for``, by default the one that is
    estimated to be best."""
    if isinstance(target, CudaTarget):
        return cuda.kernel_for(node, inputs, result, scheme, target, schedule)
    match node:
        case InputQuantize():
            return input_quantize(node, result, batch, scheme, target)
        case Conv2d() | Linear():
            family = _family(node, inputs[0], result, batch, target)
            return family.kernel(node, inputs[0], inputs[1:], result, batch, target, schedule)
        case Add():
            return add(node, inputs, result, batch, target)
        case AvgPool2d():
            return avg_pool2d(node, inputs[0], result, batch, scheme)
        case MaxPool2d():
            return max_pool2d(node, inputs[0], result, batch)
        case Concat():
            return concat(inputs, result, batch)
        case Slice():
            return slice_(node, inputs[0], result, batch)
        case Pad():
            return pad(node, inputs[0], result, batch)
        case Flatten():
            return flatten(inputs[0], result, batch)
    raise TypeError(f"{type(node).__name__} has no kernel")
