"""What IntegerQuantizer annotates, read from the programs that torchao makes of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional
from torchao.quantization.pt2e import (
    disable_observer,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)
from torchao.quantization.pt2e.observer import HistogramObserver
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from intcert.compile import quantizer
from intcert.runtime.errors import ModelError

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Quantized:
    """A tensor of a program that is quantized: the operator that computes it, and its code."""

    operator: str
    scale: float
    zero_point: int
    range: tuple[int, int]
    dtype: torch.dtype


def quantized_tensors(program: ExportedProgram) -> dict[str, Quantized]:
    """By name of the quantized node, in graph order."""
    found = {}
    for node in program.graph.nodes:
        if node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default:
            source, scale, zero_point, low, high, dtype = node.args
            found[source.name] = Quantized(str(source.target), scale, zero_point, (low, high), dtype)
    return found


def calibrate(model: nn.Module, images: Tensor = IMAGES) -> ExportedProgram:
    torch.manual_seed(0)
    prepared = quantizer.prepare_calibration(model, images)
    prepared(images)
    return quantizer.convert(prepared, images)


class Forward(nn.Module):
    """A module from a function and the submodules that it uses."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def classify(m: nn.Module, x: Tensor) -> Tensor:
    return m.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def conv(inputs: int = 3, outputs: int = 6, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def residual(m: nn.Module, x: Tensor) -> Tensor:
    """A block as in ResNets, behind a normalisation: both operands of the add are convolutions."""
    y = torch.relu(m.bn0(m.conv0((x - 0.5) / 0.25)))
    z = m.bn1(m.conv1(y)) + m.bn2(m.conv2(y))
    return classify(m, torch.relu(z))


def residual_model() -> nn.Module:
    return Forward(
        residual,
        conv0=conv(),
        bn0=nn.BatchNorm2d(6),
        conv1=conv(6),
        bn1=nn.BatchNorm2d(6),
        conv2=conv(6),
        bn2=nn.BatchNorm2d(6),
        fc=nn.Linear(6, 5),
    )


@pytest.fixture(scope="module")
def trained() -> tuple[ExportedProgram, Tensor, Tensor]:
    """The residual model after two steps of training: its program, and the output before and after conversion."""
    torch.manual_seed(0)
    prepared = quantizer.prepare_qat(residual_model(), IMAGES)
    move_exported_model_to_train(prepared)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    for _ in range(2):
        prepared(IMAGES).square().mean().backward()
        optimizer.step()
    move_exported_model_to_eval(prepared)
    prepared(IMAGES)
    prepared.apply(disable_observer)
    before = prepared(IMAGES)
    program = quantizer.convert(prepared, IMAGES)
    return program, before, program.module()(IMAGES)


def test_training_sees_the_scales_of_the_converted_model(trained):
    _, before, after = trained
    assert torch.equal(before, after)


def test_trained_and_calibrated_models_quantize_the_same_tensors(trained):
    expected = [  # operator, dtype
        ("aten.div.Tensor", torch.int8),  # the normalised input
        ("aten.relu.default", torch.uint8),
        ("aten.conv2d.default", torch.int8),  # the earlier operand of the add
        ("aten.relu.default", torch.uint8),
        ("aten.adaptive_avg_pool2d.default", torch.uint8),  # averages of what is not negative
    ]
    for program in (trained[0], calibrate(residual_model().eval())):
        found = quantized_tensors(program)
        assert [(q.operator, q.dtype) for q in found.values()] == expected
        assert {q.zero_point for q in found.values()} == {0}
        assert {(q.dtype, q.range) for q in found.values()} == {
            (torch.int8, (-127, 127)),
            (torch.uint8, (0, 255)),
        }


def test_the_later_convolution_of_an_add_stays_an_accumulator(trained):
    program = trained[0]
    (add,) = (n for n in program.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    earlier, later = add.args
    assert "dequantize" in earlier.name
    assert later.target is torch.ops.aten.conv2d.default


def test_weights_are_symmetric_per_channel_and_float_weights_are_gone(trained):
    program = trained[0]
    weights = [
        n for n in program.graph.nodes if n.target is torch.ops.quantized_decomposed.dequantize_per_channel.default
    ]
    assert len(weights) == 4
    for node in weights:
        assert node.args[3:] == (0, -127, 127, torch.int8)
    assert not any(v.dtype == torch.float32 and v.dim() > 1 for v in program.state_dict.values())
    zero_points = [v for k, v in program.state_dict.items() if "zero_point" in k]
    assert len(zero_points) == 4
    assert not any(z.any() for z in zero_points)


def test_logits_stay_in_float_and_the_batch_size_free(trained):
    module = trained[0].module()
    for n in (1, 3, 9):
        logits = module(torch.rand(n, 3, 8, 8))
        assert logits.shape == (n, 5)
        assert logits.dtype == torch.float32


def test_no_quantization_behind_data_movement():
    def forward(m, x):
        y = functional.max_pool2d(m.conv0(x).relu(), 2)
        y = m.drop(functional.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        return m.fc(y.flatten(1))

    model = Forward(forward, conv0=conv(), drop=nn.Dropout(), fc=nn.Linear(32, 5)).eval()
    assert list(quantized_tensors(calibrate(model))) == ["x", "relu"]


def test_without_normalisation_the_image_itself_is_quantized():
    program = calibrate(Forward(classify, fc=nn.Linear(3, 5)).eval())
    assert list(quantized_tensors(program)) == ["x", "adaptive_avg_pool2d"]
    assert quantized_tensors(program)["x"].dtype == torch.int8


def test_inputs_of_a_concatenation_share_one_scale():
    def forward(m, x):
        y = m.conv0(x).relu()
        z = torch.cat([y, m.conv1(y).relu(), functional.max_pool2d(m.conv2(y), 3, 1, 1)], 1)
        return classify(m, z)

    model = Forward(forward, conv0=conv(), conv1=conv(6), conv2=conv(6), fc=nn.Linear(18, 5)).eval()
    found = quantized_tensors(calibrate(model))
    joined = [found[name] for name in ("relu", "relu_1", "conv2d_2")]
    assert len({q.scale for q in joined}) == 1
    assert {q.dtype for q in joined} == {torch.int8}  # one of them has no clamp at 0


def test_concatenations_of_concatenations_share_one_scale():
    def forward(m, x):
        y = m.conv0(x).relu()
        z = torch.cat([y, m.conv1(y).relu()], 1)
        return classify(m, torch.cat([z, m.conv2(z).relu()], 1))

    model = Forward(forward, conv0=conv(), conv1=conv(6), conv2=conv(12), fc=nn.Linear(18, 5)).eval()
    found = quantized_tensors(calibrate(model))
    joined = [q for q in found.values() if q.operator == "aten.relu.default"]
    assert len(joined) == 3
    assert len({q.scale for q in joined}) == 1
    assert {q.dtype for q in joined} == {torch.uint8}


def test_a_chain_of_adds_is_one_sum():
    def forward(m, x):
        y = m.conv0(x).relu()
        return classify(m, (m.conv1(y) + y + m.conv2(y)).relu())

    model = Forward(forward, conv0=conv(), conv1=conv(6), conv2=conv(6), fc=nn.Linear(6, 5)).eval()
    found = quantized_tensors(calibrate(model))
    assert list(found) == ["x", "relu", "conv2d_1", "relu_1", "adaptive_avg_pool2d"]


def test_a_convolution_with_two_readers_is_quantized():
    def forward(m, x):
        y = m.conv0(x)
        return classify(m, m.conv1(y) + y.relu())

    model = Forward(forward, conv0=conv(), conv1=conv(6), fc=nn.Linear(6, 5)).eval()
    found = quantized_tensors(calibrate(model))
    assert {name: q.dtype for name, q in found.items()} == {
        "x": torch.int8,
        "conv2d": torch.int8,
        "relu": torch.uint8,
        "add": torch.int8,
        "adaptive_avg_pool2d": torch.int8,
    }


@pytest.mark.parametrize(
    ("clamp", "dtype"),
    [
        (nn.ReLU6(), torch.uint8),
        (nn.Hardtanh(0, 4, inplace=True), torch.uint8),
        (lambda x: x.clamp(min=0), torch.uint8),
        (lambda x: functional.relu6(x, inplace=True), torch.uint8),
        (nn.Hardtanh(), torch.int8),
        (lambda x: x.clamp(-2, 2), torch.int8),
    ],
)
def test_activations_are_unsigned_behind_a_clamp_at_0(clamp, dtype: torch.dtype):
    model = Forward(lambda m, x: classify(m, clamp(m.conv0(x))), conv0=conv(), fc=nn.Linear(6, 5)).eval()
    found = list(quantized_tensors(calibrate(model)).values())
    assert [q.dtype for q in found] == [torch.int8, dtype, dtype]


def test_readers_after_an_in_place_operator_read_its_result():
    def forward(m, x):
        y = m.conv0(x)
        z = m.conv1(functional.relu(y, inplace=True))
        z += y  # y is the clamped tensor by now
        return classify(m, z)

    model = Forward(forward, conv0=conv(), conv1=conv(6), fc=nn.Linear(6, 5)).eval()
    program = calibrate(model)
    found = quantized_tensors(program)
    assert list(found) == ["x", "relu_", "add_", "adaptive_avg_pool2d"]
    reference = model(IMAGES)
    assert (program.module()(IMAGES) - reference).abs().max() < 0.05 * reference.abs().max()


def test_sum_and_padding_by_name():
    def forward(m, x):
        y = m.conv0(x).relu()
        return classify(m, sum([m.conv1(y), y]))

    model = Forward(
        forward,
        conv0=nn.Conv2d(3, 6, 3, padding="same"),
        conv1=nn.Conv2d(6, 6, 5, padding="same", dilation=2),
        fc=nn.Linear(6, 5),
    ).eval()
    program = calibrate(model)
    assert list(quantized_tensors(program)) == ["x", "relu", "add", "adaptive_avg_pool2d"]
    paddings = [n.args[4] for n in program.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    assert paddings == [[1, 1], [4, 4]]


def test_observer_of_activations_can_be_chosen():
    model = Forward(lambda m, x: classify(m, m.conv0(x).relu()), conv0=conv(), fc=nn.Linear(6, 5)).eval()
    graph = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)).module()
    prepared = prepare_pt2e(graph, quantizer.IntegerQuantizer(HistogramObserver))
    prepared(IMAGES)
    observers = [m for m in prepared.modules() if isinstance(m, HistogramObserver)]
    assert len(observers) == 3
    program = quantizer.convert(prepared, IMAGES)
    assert {q.zero_point for q in quantized_tensors(program).values()} == {0}


@pytest.mark.parametrize(
    ("function", "node"),
    [
        (lambda m, x: classify(m, torch.sigmoid(m.conv0(x))), r"sigmoid \(aten.sigmoid.default\)"),
        (lambda m, x: classify(m, m.conv0(x) * 2), r"mul \(aten.mul.Tensor\)"),
        (lambda m, x: classify(m, m.conv0(x) + 1), r"add \(aten.add.Tensor\)"),
        (lambda m, x: classify(m, m.conv0(x)).softmax(1), r"softmax \(aten.softmax.int\)"),
    ],
)
def test_operators_without_integer_form_are_refused_before_training(function, node: str):
    model = Forward(function, conv0=conv(), fc=nn.Linear(6, 5)).eval()
    with pytest.raises(ModelError, match=f"^{node}: no integer form; ") as caught:
        quantizer.prepare_calibration(model, IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["torch", "torchao"])
def test_without_torch_the_message_says_what_to_install(package: str):
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from intcert.runtime.errors import MissingDependencyError\n"
        "try: import intcert.compile.quantizer\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == f"quantizing a model needs {package}: pip install 'intcert[torch]'\n"
