"""What a GPU reaches at most, measured: int8 products and bytes of memory; and every layer's share of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layers import multiply_adds

from intcert.compile.graph import IntegerGraph
from intcert.compile.layer import layers_of
from intcert.runtime.benchmark import LayerTime
from intcert.targets import CudaTarget

if TYPE_CHECKING:
    import torch

ROUNDS = 10
SIDE = 8192  # of the square int8 matrices that are multiplied
COPIED = 1 << 30  # bytes: no cache holds them
LEAST = 1e-12  # seconds: a layer that takes less than the clock tells has a share all the same


@dataclass(frozen=True)
class Ceilings:
    """Multiply-adds a second of a large int8 matrix product (cuBLASLt), and bytes a second that a copy reads and
    writes."""

    multiply_adds: float
    bytes: float


@dataclass(frozen=True)
class LayerShare:
    """A layer, microseconds an image, and the share of each ceiling that it reaches.

    of_bytes counts activations read and written, which a cache may hold: it can exceed 1.
    """

    name: str
    kernel: str
    shape: str
    us: float
    of_products: float
    of_bytes: float


def measure_ceilings(device: str, side: int = SIDE, copied: int = COPIED) -> Ceilings:
    """The ceilings of a device of torch's."""
    import torch

    a, b = (torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
    source, target = (torch.zeros(copied, dtype=torch.uint8, device=device) for _ in range(2))
    columns = b.t()  # cuBLASLt wants the second operand's columns together
    product = least_seconds(lambda: torch._int_mm(a, columns), device)
    return Ceilings(side**3 / product, 2 * copied / least_seconds(lambda: target.copy_(source), device))


def least_seconds(work: Callable[[], torch.Tensor | None], device: str) -> float:
    """Least wall-clock time of one call on a device, after three others."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    least = float("inf")
    for turn in range(3 + ROUNDS):
        wait()
        begin = time.perf_counter()
        work()
        wait()
        if turn >= 3:
            least = min(least, time.perf_counter() - begin)
    return least


def layer_shares(
    graph: IntegerGraph, target: CudaTarget, times: Sequence[LayerTime], ceilings: Ceilings
) -> list[LayerShare]:
    """Shares of the ceilings for the measured times of a network's layers. Those without operands read int16 pixels."""
    products = multiply_adds(graph)
    moved = [
        layer.result.bytes + (sum(operand.bytes for operand in layer.inputs) or 2 * graph.dimension)
        for layer in layers_of(graph, 1, target)
    ]
    return [
        LayerShare(
            layer.name,
            layer.kernel,
            "x".join(map(str, layer.shape)),
            layer.seconds * 1e6,
            layer_products / max(layer.seconds, LEAST) / ceilings.multiply_adds,
            layer_bytes / max(layer.seconds, LEAST) / ceilings.bytes,
        )
        for layer, layer_products, layer_bytes in zip(times, products, moved, strict=True)
    ]
