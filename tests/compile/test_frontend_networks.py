"""Whole networks: ours, random ones and those of other quantizers, imported and compared with PyTorch's own run."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from qdq_programs import assert_follows_torch
from random_networks import RandomNetwork, quantize, run_program, settle
from torch.export import Dim, ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

from intcert.compile.frontend import import_program
from intcert.compile.nodes import Add, Conv2d, InputQuantize, Linear
from intcert.compile.reference import run
from intcert.runtime.errors import ModelError
from intcert.train.models import MODELS

SCHEMES = ("q15", "q31")


def network(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network of the registry with random weights, in eval mode, and a batch for calibration."""
    torch.manual_seed(0)
    model = MODELS[name]()
    example = torch.rand(4, *MODELS[name].input_shape)
    return settle(model, example), example


def images_for(example: torch.Tensor, n: int) -> np.ndarray:
    _, channels, height, width = example.shape
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels))


def agreement(program: ExportedProgram, graph, images: np.ndarray) -> float:
    """Share of images that both classify alike."""
    return float((run(graph, images.astype(np.int16)).argmax(1) == run_program(program, images)[1].argmax(1)).mean())


@pytest.mark.parametrize("name", ["lenet", "mlp", "vgg", "resnet20"])
def test_network(name: str):
    model, example = network(name)
    program = quantize(model, example)
    images = images_for(example, 32)
    for scheme in SCHEMES:
        graph = assert_follows_torch(program, scheme, images)
        assert agreement(program, graph, images) >= 30 / 32
    assert import_program(program).scheme == "q15"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2"])
def test_imagenet_network(name: str):
    model, example = network(name)
    program = quantize(model, example)
    images = images_for(example, 2)
    start = time.perf_counter()
    import_program(program)
    assert time.perf_counter() - start < 20
    for scheme in SCHEMES:
        assert_follows_torch(program, scheme, images)


def test_resnet20_is_nothing_but_fused_convolutions():
    model, example = network("resnet20")
    graph = import_program(quantize(model, example))
    convolutions = [node for node in graph.nodes if isinstance(node, Conv2d)]
    assert len(convolutions) == 19
    assert sum(len(node.terms) for node in convolutions) == 9
    assert not any(isinstance(node, Add) for node in graph.nodes)
    assert isinstance(graph.nodes[0], InputQuantize)
    assert isinstance(graph.nodes[-1], Linear)
    assert graph.input_shape == (32, 32, 3)
    assert graph.classes == 10


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_network(seed: int):
    network = RandomNetwork(seed)
    settle(network, network.example)
    program = quantize(network, network.example)
    images = images_for(network.example, 8)
    _, output = run_program(program, images)
    assume(output.std() > 0)
    for scheme in SCHEMES:
        try:
            assert_follows_torch(program, scheme, images)
        except ModelError as error:
            # A layer that is 0 for every calibration image gets the least scale, which no requantization can hold.
            if "its output scale is too fine" not in str(error) and "use scheme q31" not in str(error):
                raise
            reject()


@pytest.mark.slow
def test_trained_random_networks():
    for seed in range(4):
        network = RandomNetwork(seed)
        settle(network, network.example)
        program = quantize(network, network.example, train=True)
        for scheme in SCHEMES:
            assert_follows_torch(program, scheme, images_for(network.example, 8))


def xnnpack(per_channel: bool) -> Quantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=per_channel))


def x86(reduce_range: bool) -> Quantizer:
    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(reduce_range=reduce_range))


def foreign(model: torch.nn.Module, example: torch.Tensor, quantizer: Quantizer) -> ExportedProgram:
    batch = ({0: Dim("batch", min=1)},)
    prepared = prepare_pt2e(torch.export.export(model, (example,), dynamic_shapes=batch).module(), quantizer)
    prepared(example)
    return torch.export.export(convert_pt2e(prepared), (example,), dynamic_shapes=batch)


@pytest.mark.parametrize(
    ("name", "quantizer"),
    [
        ("lenet", xnnpack(per_channel=True)),
        ("lenet", x86(reduce_range=True)),
        ("vgg", xnnpack(per_channel=False)),
        ("vgg", x86(reduce_range=False)),
        ("resnet20", xnnpack(per_channel=True)),
    ],
)
def test_programs_of_other_quantizers(name: str, quantizer: Quantizer):
    model, example = network(name)
    program = foreign(model, example, quantizer)
    zero_points = {
        node.args[2]
        for node in program.graph.nodes
        if node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
    }
    assert zero_points - {0}
    images = images_for(example, 16)
    for scheme in SCHEMES:
        graph = assert_follows_torch(program, scheme, images)
        assert agreement(program, graph, images) >= 15 / 16


def test_float_average_of_another_quantizer_is_named():
    model, example = network("resnet20")
    with pytest.raises(
        ModelError,
        match=r"^adaptive_avg_pool2d \(aten.adaptive_avg_pool2d\): reads relu_18 in float; put a quantize node between",
    ):
        import_program(foreign(model, example, x86(reduce_range=False)))
