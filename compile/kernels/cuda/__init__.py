"""GPU kernels: one file a family. ``kernel_for`` chooses the family of a node by asking the target."""

from __future__ import annotations

from intcert.compile.kernels.base import Kernel, Schedule
from intcert.compile.kernels.cuda.conv2d import conv2d, conv2d_tiles
from intcert.compile.kernels.cuda.elementwise import add, avg_pool2d, grouped_conv2d, input_quantize, max_pool2d
from intcert.compile.kernels.cuda.histogram import histogram
from intcert.compile.kernels.cuda.movement import concat, flatten, load_samples, pad, slice_, store_logits
from intcert.compile.kernels.cuda.noise import noisy_input
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
from intcert.targets import CudaTarget

__all__ = ["histogram", "kernel_for", "load_samples", "noisy_input", "schedules_for", "store_logits"]


def schedules_for(node: Node, inputs: list[Layout], result: Layout, target: CudaTarget) -> tuple[Schedule, ...]:
    """The schedules that ``kernel_for`` takes for a node, its own choice first; none where there is no choice."""
    if isinstance(node, Linear) or (isinstance(node, Conv2d) and node.groups == 1):
        return conv2d_tiles(node, inputs[0], result, target)
    return ()


def kernel_for(
    node: Node,
    inputs: list[Layout],
    result: Layout,
    scheme: str,
    target: CudaTarget,
    schedule: Schedule | None = None,
) -> Kernel:
    """Kernel of one node. inputs: layouts of its operands, in the order of ``nodes.operands``; schedule: one of
    ``schedules_for``, by default the first."""
    match node:
        case InputQuantize():
            return input_quantize(node, result, scheme)
        case Conv2d() if node.groups > 1:
            return grouped_conv2d(node, inputs[0], inputs[1:], result)
        case Conv2d() | Linear():
            return conv2d(node, inputs[0], inputs[1:], result, target, schedule)
        case Add():
            return add(node, inputs, result)
        case AvgPool2d():
            return avg_pool2d(node, inputs[0], result, scheme)
        case MaxPool2d():
            return max_pool2d(node, inputs[0], result)
        case Concat():
            return concat(inputs, result)
        case Slice():
            return slice_(node, inputs[0], result)
        case Pad():
            return pad(node, inputs[0], result)
        case Flatten():
            return flatten(inputs[0], result)
    raise TypeError(f"{type(node).__name__} has no GPU kernel")
