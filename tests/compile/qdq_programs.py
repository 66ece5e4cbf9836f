"""Quantized programs written by hand, operator by operator, and their comparison with PyTorch's own run.

They need no quantizer: every scale, zero point and dtype is chosen, which reaches what no quantizer would write.
"""

from __future__ import annotations

import numpy as np
import torch
from random_networks import forced_differences, run_program
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from intcert.compile.frontend import import_program
from intcert.compile.graph import IntegerGraph
from intcert.compile.nodes import AvgPool2d
from intcert.compile.reference import run

#: Share of elements that may be one step off PyTorch, over all of a node: PyTorch's ties for q31, 16 bits for q15.
OFF_BY_ONE = {"q15": 0.15, "q31": 0.02}
#: The same for averages: half of the sums of two values are ties, and PyTorch rounds every second one down.
OFF_BY_ONE_AVERAGE = 0.35

quantized = torch.ops.quantized_decomposed
RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def qdq(x: Tensor, scale: float, zero: int = 0, dtype: torch.dtype = torch.int8) -> Tensor:
    """Quantize and dequantize, as convert_pt2e writes it."""
    code = (scale, zero, *RANGES[dtype], dtype)
    return quantized.dequantize_per_tensor.default(quantized.quantize_per_tensor.default(x, *code), *code)


def u8(x: Tensor, scale: float = 0.02, zero: int = 3) -> Tensor:
    return qdq(x, scale, zero, torch.uint8)


class Weights(nn.Module):
    """Int8 weights of a convolution or linear layer; calling it applies them."""

    def __init__(self, *shape: int, seed: int = 0, bias: bool = True, **options) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        fan_in = np.prod(shape[1:])
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer(
            "scales", torch.from_numpy(rng.uniform(0.5, 1, shape[0]).astype(np.float32) / fan_in**0.5 / 60)
        )
        self.register_buffer("zeros", torch.zeros(shape[0], dtype=torch.int64))
        self.bias = nn.Parameter(torch.from_numpy(rng.normal(0, 0.3, shape[0]).astype(np.float32))) if bias else None
        self.options = options

    def float(self) -> Tensor:
        return quantized.dequantize_per_channel.default(self.codes, self.scales, self.zeros, 0, -127, 127, torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.float()
        if weight.dim() == 2:
            return functional.linear(x, weight, self.bias)
        return functional.conv2d(x, weight, self.bias, **self.options)


class Program(nn.Module):
    """``body(m, activation)`` between the usual beginning and end.

    The activation is uint8 with a zero point, 4 channels of 9x8; the end flattens and classifies into 5 (whole=False).
    """

    def __init__(self, body, *, whole: bool = False, **modules: nn.Module) -> None:
        super().__init__()
        self.body, self.whole = body, whole
        self.stem = Weights(4, 3, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).reshape(3, 1, 1))
        for name, module in modules.items():
            self.add_module(name, module)
        if not whole:
            with torch.no_grad():
                features = self.features(torch.zeros(2, 3, 9, 8)).flatten(1).shape[1]
            self.fc = Weights(5, features, seed=9)

    def features(self, x: Tensor) -> Tensor:
        x = qdq((x - self.mean) / self.std, 0.021, 5)
        return self.body(self, u8(functional.relu(self.stem(x))))

    def forward(self, x: Tensor) -> Tensor:
        if self.whole:
            return self.body(self, x)
        return self.fc(torch.flatten(self.features(x), 1))


def export(module: nn.Module, shape: tuple[int, ...] = (3, 9, 8), n: int = 6) -> ExportedProgram:
    return torch.export.export(module, (torch.zeros(n, *shape),))


def pixels(shape: tuple[int, int, int] = (9, 8, 3), n: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape))


def conv(*shape: int, seed: int = 1, **options) -> Weights:
    return Weights(*shape, seed=seed, **options)


def assert_follows_torch(program: ExportedProgram, scheme: str, images: np.ndarray) -> IntegerGraph:
    """Import a program and compare every quantized activation, and the logits, with PyTorch.

    PyTorch rounds halves to even and computes in float32, so it may be one step off. images: int [N, H, W, C] pixels.
    """
    graph = import_program(program, scheme)
    codes, output = run_program(program, images)
    differences = forced_differences(graph, images, codes)
    assert differences
    averages = {name for name, node in zip(graph.names, graph.nodes, strict=True) if isinstance(node, AvgPool2d)}
    for name, difference in differences.items():
        assert difference.max() <= 1, name
        share = OFF_BY_ONE_AVERAGE if name in averages else OFF_BY_ONE[scheme]
        # The constant lets a small tensor have a tie or two.
        assert difference.sum() <= share * difference.size + 3, name
    logits = run(graph, images.astype(np.int16))
    assert logits.shape == output.shape
    if output.std() > 0:
        assert np.corrcoef(logits.ravel(), output.ravel())[0, 1] > 0.98
    return graph
