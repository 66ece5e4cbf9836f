"""Plain kernels equal ours on every kind of layer, and a difference or a slow layer is named."""

from __future__ import annotations

import json

import numpy as np
import plain
import pytest
import torch
from click.testing import CliRunner
from plain import Layer, Network, compare, first_difference, main
from plain_kernels import ORDERS, plain_kernels

from intcert import targets
from intcert.compile.build import load_model
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels import kernel_for
from intcert.compile.nodes import Add, AvgPool2d, Conv2d, InputQuantize, Linear, MaxPool2d
from intcert.compile.plan import make_plan
from intcert.compile.quantizer import convert, prepare_calibration
from intcert.runtime.noise import noise_law

pytestmark = pytest.mark.skipif(not targets.runnable(), reason="compiles for x86 with AVX2")
RUNNABLE = [target.name for target in targets.runnable()]


class Everything(torch.nn.Module):
    """Each kind of layer that the three large networks have, and a sum of stored tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 20, 7, 2, padding=3)
        self.pool = torch.nn.MaxPool2d(3, 2, padding=1)
        self.depthwise = torch.nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.project = torch.nn.Conv2d(20, 20, 1)
        self.last = torch.nn.Conv2d(20, 40, 3, 2, padding=1)
        self.linear = torch.nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = x + self.project(torch.nn.functional.relu6(self.depthwise(x)))
        x = torch.relu(x) + x
        x = torch.relu(self.last(x))
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module", params=["q15", "q31"])
def graph(request) -> IntegerGraph:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 22, 22)
    prepared = prepare_calibration(Everything().eval(), images[:2])
    prepared(1.6 * images - 0.3)
    found = load_model(convert(prepared, images[:2]), request.param).graph
    kinds = {type(node) for node in found.nodes}
    assert {InputQuantize, Conv2d, Linear, MaxPool2d, AvgPool2d, Add} <= kinds
    return found


def networks(graph: IntegerGraph, target: str, *chooses) -> list[Network]:
    device, law = targets.find(target), noise_law("0.25")
    return [Network(graph, make_plan(graph, law, device, 3, choose=choose), device) for choose in chooses]


def images(graph: IntegerGraph) -> np.ndarray:
    return np.random.default_rng(0).integers(-300, 600, (3, *graph.input_shape)).astype(np.int16)


@pytest.mark.parametrize("target", RUNNABLE)
def test_plain_kernels_equal_ours(graph, target):
    compared = networks(graph, target, kernel_for, *map(plain_kernels, ORDERS))
    assert first_difference(compared, images(graph)) is None
    # There was something to compare: activations vary, and the kernels are not the same ones.
    assert len(np.unique(compared[0].result(1))) > 20
    names = [step.kernel.name for step in compared[1].plan.steps]
    assert sum(name.endswith(".plain") for name in names) >= len(names) - 1


def test_the_first_layer_that_differs_is_named(graph):
    def wrong(node, *arguments, **schedule):
        """A kernel with another bias."""
        if isinstance(node, Linear):
            node = Linear(node.input, node.weight, node.bias + 1000, node.requant, node.clamp, node.terms)
        return kernel_for(node, *arguments, **schedule)

    assert first_difference(networks(graph, RUNNABLE[0], kernel_for, wrong), images(graph)) == graph.names[-1]


def test_layers_are_compared_where_their_kernels_differ(graph):
    found = compare(graph, targets.find(RUNNABLE[-1]), 1)
    assert [layer.name for layer in found] == list(graph.names)
    assert all(layer.plain.keys() in ({*ORDERS}, set()) for layer in found)
    assert [layer.name for layer in found if not layer.plain] == [
        name for name, node in zip(graph.names, graph.nodes, strict=True) if type(node).__name__ == "Flatten"
    ]


def test_only_clearly_slower_layers_count():
    def layer(ours: float, **times: float) -> Layer:
        return Layer("a", "b", (1,), ours, times)

    assert layer(2.0, channels=6.0, reduction=1.0).speedup == 0.5
    assert [layer(ours, channels=1.0).slower for ours in (0.9, 1.0, 1.01, 1.05)] == [False, False, False, True]
    assert not layer(1.0).slower
    assert layer(1.0).speedup is None


def test_the_command_exits_with_1_where_a_layer_is_slower(graph, tmp_path, monkeypatch):
    if graph.scheme == "q31":
        pytest.skip("one scheme shows it")
    model = tmp_path / "model.graph"
    model.write_bytes(graph.to_bytes())
    words = [str(model), "--target", RUNNABLE[-1], "--rounds", "1", "--json", str(tmp_path / "plain.json")]
    # No layer is a thousand times as fast as plain, and all are a thousandth.
    for tolerance, code in ((-1000.0, 1), (0.999, 0)):
        monkeypatch.setattr(plain, "TOLERANCE", tolerance)
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == code, result.output
        assert ("slower than plain: none" in result.output) == (code == 0)
    layers = json.loads((tmp_path / "plain.json").read_text())["layers"]
    assert [layer["name"] for layer in layers] == list(graph.names)
