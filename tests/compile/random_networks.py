"""Random small PyTorch classifiers, their quantization, and the comparison of an import with PyTorch's own run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's users know
from torch import Tensor, nn
from torch.export import ExportedProgram

from intcert.compile import quantizer
from intcert.compile.graph import IntegerGraph
from intcert.compile.nodes import InputQuantize, operands
from intcert.compile.reference import activations
from intcert.compile.reference.network import execute

Layer = Callable[[list[Tensor]], Tensor]


class RandomNetwork(nn.Module):
    """A classifier drawn from a seed: convolutions of every geometry, residuals, joins, pooling, option A shortcuts.

    Images float [N, channels, height, width] in [0, 1] to logits [N, 5]; ``example`` is a batch of them.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        channels, height, width = self.between(1, 4), self.between(7, 13), self.between(7, 13)
        self.example = torch.rand(8, channels, height, width)
        self.register_buffer("mean", torch.rand(channels, 1, 1) * 0.5 + 0.2)
        self.register_buffer("std", torch.rand(channels, 1, 1) * 0.3 + 0.15)
        self.modules_of_layers = nn.ModuleList()
        self.layers: list[Layer] = []
        # Shapes while the plan is made: running the network so far is the simplest shape inference.
        self.trace = [self.normalise(self.example)]
        self.plan()
        del self.trace

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high, endpoint=True))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        values = [self.normalise(x)]
        for layer in self.layers:
            values.append(layer(values))
        return values[-1]

    def add(self, layer: Layer) -> int:
        self.layers.append(layer)
        with torch.no_grad():
            self.trace.append(layer(self.trace))
        return len(self.trace) - 1

    def module(self, module: nn.Module) -> nn.Module:
        self.modules_of_layers.append(module)
        return module

    def plan(self) -> None:
        last = self.conv(0)
        steps = (
            self.conv,
            self.conv,
            self.residual,
            self.residual,
            self.join,
            self.max_pool,
            self.average,
            self.shortcut,
        )
        for _ in range(self.between(2, 5)):
            last = steps[self.between(0, len(steps) - 1)](last)
        self.head(last)

    def conv(self, source: int, outputs: int | None = None, kept: bool = False, relu: bool = True) -> int:
        _, channels, height, width = self.trace[source].shape
        kernel = self.between(1, 3)
        dilation = self.between(1, 2) if self.chance(0.2) else 1
        stride = 1 if kept else self.between(1, 2)
        if kept or min(height, width) < dilation * (kernel - 1) + 1:
            padding: int | str = "same" if self.chance(0.3) else dilation * (kernel - 1) // 2
            kernel, dilation = (kernel, dilation) if padding == "same" else (2 * (kernel // 2) + 1, dilation)
            padding = padding if padding == "same" else dilation * (kernel // 2)
            stride = 1
        else:
            padding = self.between(0, 1)
        groups = 1
        if self.chance(0.3) and (outputs is None or outputs % channels == 0):
            groups, outputs = channels, outputs or channels * self.between(1, 2)
        outputs = outputs or self.between(2, 9)
        bias = self.chance(0.5)
        conv = self.module(nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups, bias))
        # torchao does not fold batch normalisation behind a convolution that pads "same" unevenly.
        uneven = padding == "same" and dilation * (kernel - 1) % 2
        norm = self.module(nn.BatchNorm2d(outputs)) if self.chance(0.6) and not uneven else nn.Identity()
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
        clamp = self.clamp() if relu and self.chance(0.8) else nn.Identity()
        return self.add(lambda values: clamp(norm(conv(values[source]))))

    def clamp(self) -> Callable[[Tensor], Tensor]:
        choices = (
            F.relu,
            F.relu_,
            F.relu6,
            nn.ReLU6(inplace=True),
            nn.ReLU(),
            lambda x: x.clamp(0, 3),
            nn.Hardtanh(0, 6),
        )
        return choices[self.between(0, len(choices) - 1)]

    def residual(self, source: int) -> int:
        channels = self.trace[source].shape[1]
        left = self.conv(source, channels, kept=True, relu=self.chance(0.3))
        terms = [left, source]
        if self.chance(0.4):
            terms.append(self.conv(source, channels, kept=True, relu=False))
        if self.chance(0.3):
            terms = terms[::-1]
        clamp = self.clamp() if self.chance(0.7) else nn.Identity()
        if self.chance(0.3):
            return self.add(lambda values: clamp(values[terms[0]] + values[terms[1]]))
        return self.add(lambda values: clamp(sum(values[i] for i in terms[1:]) + values[terms[0]]))

    def join(self, source: int) -> int:
        pieces = [self.conv(source, None, kept=True) for _ in range(self.between(1, 2))]
        pieces.insert(self.between(0, len(pieces)), source)
        return self.add(lambda values: torch.cat([values[i] for i in pieces], 1))

    def max_pool(self, source: int) -> int:
        kernel = self.between(1, 3)
        dilation = 2 if kernel > 1 and self.chance(0.2) else 1
        if min(self.trace[source].shape[2:]) < max(4, dilation * (kernel - 1) + 1):
            return source
        stride, padding, ceil = self.between(1, 2), self.between(0, kernel // 2), self.chance(0.5)
        return self.add(lambda values: F.max_pool2d(values[source], kernel, stride, padding, dilation, ceil))

    def average(self, source: int) -> int:
        height, width = self.trace[source].shape[2:]
        if min(height, width) < 4:
            return source
        if self.chance(0.4):
            size = (self.between(1, height), self.between(1, width))
            return self.add(lambda values: F.adaptive_avg_pool2d(values[source], size))
        kernel, stride = self.between(2, 3), self.between(1, 3)
        padding, ceil, counted = self.between(0, kernel // 2), self.chance(0.5), self.chance(0.5)
        divisor = self.between(2, 9) if self.chance(0.2) else None
        return self.add(lambda values: F.avg_pool2d(values[source], kernel, stride, padding, ceil, counted, divisor))

    def shortcut(self, source: int) -> int:
        """A block that halves the image, with the parameter-free shortcut of He et al. 2015."""
        channels = self.trace[source].shape[1]
        if channels > 12:
            return source
        pad = self.between(1, 2)
        conv = self.module(nn.Conv2d(channels, channels + 2 * pad, 3, 2, 1))
        clamp = self.clamp()
        return self.add(
            lambda values: clamp(conv(values[source]) + F.pad(values[source][:, :, ::2, ::2], (0, 0, 0, 0, pad, pad)))
        )

    def head(self, source: int) -> None:
        kind = self.between(0, 3)
        if kind == 0:
            last = self.conv(source, 5, relu=False)
            self.add(lambda values: F.adaptive_avg_pool2d(values[last], 1).flatten(1))
            return
        drop = self.module(nn.Dropout(0.3))
        if kind == 1:
            last = self.add(lambda values: drop(values[source].mean((2, 3))))
        elif kind == 2:
            last = self.add(lambda values: F.adaptive_avg_pool2d(values[source], 1).squeeze(-1).squeeze(-1))
        else:
            last = self.add(lambda values: torch.flatten(values[source], 1))
        if self.chance(0.5):
            hidden = self.module(nn.Linear(self.trace[last].shape[1], 12))
            before = last
            last = self.add(lambda values: F.relu(hidden(drop(values[before]))))
        linear = self.module(nn.Linear(self.trace[last].shape[1], 5))
        self.add(lambda values: linear(values[last]))


def settle(model: nn.Module, example: Tensor) -> nn.Module:
    """Give batch normalisation the statistics of its input, as training would: activations neither die nor explode.

    Returns the model in eval mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain average of all batches
    model.train()
    with torch.no_grad():
        model(torch.rand_like(example))
        model(example)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return model.eval()


def quantize(model: nn.Module, example: Tensor, train: bool = False) -> ExportedProgram:
    """Our quantizer's program of a model, calibrated (or trained for a step) on the example."""
    from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train

    if not train:
        prepared = quantizer.prepare_calibration(model, example)
        prepared(example)
        return quantizer.convert(prepared, example)
    prepared = quantizer.prepare_qat(model, example)
    move_exported_model_to_train(prepared)
    prepared(example).square().mean().backward()
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        prepared(example)
    return quantizer.convert(prepared, example)


def run_program(program: ExportedProgram, images: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """PyTorch's own execution. images: int [N, H, W, C] pixels.

    Returns what every quantize node gave, channels last, by the name of the node that it quantizes, and the output.
    """
    codes: dict[str, np.ndarray] = {}
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    targets |= signature.inputs_to_lifted_tensor_constants

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if "quantize_per_tensor" in str(n.target) and "dequantize" not in str(n.target):
                value = result.numpy()
                codes[n.args[0].name] = np.moveaxis(value, 1, -1) if value.ndim == 4 else value
            return result

    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1), np.float32)) / 255
    stored = {**program.constants, **program.state_dict}
    inputs = [
        stored[targets[node.name]] if node.name in targets else pixels
        for node in program.graph.nodes
        if node.op == "placeholder"
    ]
    with torch.no_grad():
        (output,) = Recorder(program.graph_module).run(*inputs)
    return codes, output.numpy()


def forced_differences(graph: IntegerGraph, images: np.ndarray, codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """|integer - PyTorch| of every node that PyTorch quantizes, each given PyTorch's own operands.

    Forcing the operands keeps a step's difference from growing through later layers.
    """
    last = {_operator(name): position for position, name in enumerate(graph.names)}
    values: list[np.ndarray] = []
    differences = {}
    own = activations(graph, images.astype(np.int16))
    for position, (node, name) in enumerate(zip(graph.nodes, graph.names, strict=True)):
        if isinstance(node, InputQuantize):
            value = own[position]
        else:
            value = execute(node, [values[i] for i in operands(node)], graph.scheme)
        operator = _operator(name)
        if position == last[operator] and operator in codes:
            expected = codes[operator]
            differences[operator] = np.abs(value.astype(np.int64) - expected.astype(np.int64))
            value = expected
        values.append(value)
    return differences


def _operator(name: str) -> str:
    """The operator that a node comes from: several nodes of one operator carry its name with a number."""
    return name.partition(".")[0]
