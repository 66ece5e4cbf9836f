"""Kernels: one file a family. ``kernel_for`` chooses the family of a node by asking the target."""

from __future__ import annotations

from intcert.compile.kernels.amx import amx_conv2d
from intcert.compile.kernels.base import Kernel
from intcert.compile.kernels.conv2d import conv2d
from intcert.compile.kernels.depthwise import depthwise
from intcert.compile.kernels.depthwise_dot import depthwise_dot, fits_depthwise_dot
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
from intcert.targets import Target

__all__ = ["Kernel", "kernel_for"]


def kernel_for(node: Node, inputs: list[Layout], result: Layout, batch: int, scheme: str, target: Target) -> Kernel:
    """Kernel of one node. inputs: layouts of its operands, in the order of ``nodes.operands``."""
    match node:
        case InputQuantize():
            return input_quantize(node, result, batch, scheme, target)
        case Conv2d() if node.groups == inputs[0].channels == result.channels and node.groups > 1:
            if fits_depthwise_dot(node, target):
                return depthwise_dot(node, inputs[0], inputs[1:], result, batch, target)
            return depthwise(node, inputs[0], inputs[1:], result, batch, target)
        case Conv2d() | Linear() if target.tile and getattr(node, "groups", 1) == 1:
            return amx_conv2d(node, inputs[0], inputs[1:], result, batch, target)
        case Conv2d() | Linear():
            return conv2d(node, inputs[0], inputs[1:], result, batch, target)
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
