"""What cannot be imported: one line that names the node and what to do, whatever the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from qdq_programs import Program, Weights, conv, export, qdq, quantized, u8
from torch import nn
from torch.nn import functional

from intcert.compile.frontend import import_program, list_problems, read_metadata
from intcert.runtime.errors import ModelError


def refusal(program, scheme: str = "auto") -> str:
    with pytest.raises(ModelError) as caught:
        import_program(program, scheme)
    message = str(caught.value)
    assert "\n" not in message
    return message


def dynamic(m, x):
    scale, zero = quantized.choose_qparams.tensor(x, 0, 255, 1e-6, torch.uint8)
    return quantized.dequantize_per_tensor.tensor(
        quantized.quantize_per_tensor.tensor(x, scale, zero, 0, 255, torch.uint8), scale, zero, 0, 255, torch.uint8
    )


def without_dequantize(m, x):
    return quantized.quantize_per_tensor.default(x, 0.1, 0, 0, 255, torch.uint8).flatten(1)


def sixteen_bits(m, x):
    code = (0.001, 0, -32768, 32767, torch.int16)
    return quantized.dequantize_per_tensor.default(quantized.quantize_per_tensor.default(x, *code), *code)


def per_channel_activation(m, x):
    code = (m.a.scales, m.a.zeros, 1, -128, 127, torch.int8)
    return quantized.dequantize_per_channel.default(quantized.quantize_per_channel.default(x, *code), *code)


def asymmetric_weights(m, x):
    codes, scales = m.a.codes, m.a.scales
    weight = quantized.dequantize_per_channel.default(codes, scales, m.a.zeros + 3, 0, -127, 127, torch.int8)
    return u8(functional.conv2d(x, weight))


def weights_along_inputs(m, x):
    codes, scales = m.a.codes, m.a.scales
    weight = quantized.dequantize_per_channel.default(codes, scales, m.a.zeros, 1, -127, 127, torch.int8)
    return u8(functional.conv2d(x, weight))


A = {"a": conv(4, 4, 1, 1)}
AB = {**A, "b": conv(4, 4, 1, 1, seed=2)}
BN = {**A, "bn": nn.BatchNorm2d(4)}

REFUSALS = {
    "unsupported operator": (
        lambda m, x: u8(torch.sigmoid(m.a(x))),
        A,
        r"^sigmoid \(aten.sigmoid\): unsupported operator; build the model from",
    ),
    "softmax": (lambda m, x: u8(m.a(x).softmax(1)), A, r"^softmax \(aten.softmax.int\): a softmax has no integer form"),
    "float island at a convolution": (
        lambda m, x: u8(m.b(m.a(x).relu())),
        AB,
        r"^conv2d_2 \(aten.conv2d\): reads relu_1 in float; put a quantize node between them$",
    ),
    "float island at a pool": (
        lambda m, x: u8(functional.avg_pool2d(m.a(x), 2)),
        A,
        r"^avg_pool2d \(aten.avg_pool2d\): reads conv2d_1 in float; put a quantize node between them$",
    ),
    "float island at a fractional clamp": (
        lambda m, x: u8(m.a(x.clamp(0, 0.333))),
        A,
        r"^conv2d_1 \(aten.conv2d\): reads clamp, a clamp between two integers; put a quantize node between them$",
    ),
    "average added in float": (
        lambda m, x: u8(functional.avg_pool2d(x, 3, 1, 1) + x),
        {},
        r"^add \(aten.add.Tensor\): adds avg_pool2d in float; put a quantize node behind it$",
    ),
    "two accumulators": (
        lambda m, x: u8(m.a(x) + m.b(x)),
        AB,
        r"^add \(aten.add.Tensor\): adds two accumulators \(conv2d_1 and conv2d_2\); put a quantize node behind one",
    ),
    "unquantized weights": (
        lambda m, x: u8(m.plain(x)),
        {"plain": nn.Conv2d(4, 4, 1)},
        r"^conv2d_1 \(aten.conv2d\): weights are not quantized to int8; let the quantizer annotate",
    ),
    "asymmetric weights": (
        asymmetric_weights,
        A,
        r"^dequantize_per_channel_1 .*: weights have a zero point; quantize them",
    ),
    "weights along inputs": (
        weights_along_inputs,
        A,
        r"^dequantize_per_channel_1 .*: weights are quantized along axis 1",
    ),
    "dynamic quantization": (
        dynamic,
        {},
        r"^choose_qparams \(.*\): dynamic quantization; quantize activations statically",
    ),
    "quantized operators": (
        without_dequantize,
        {},
        r"^flatten \(aten.flatten.using_ints\): works on a quantized tensor directly; put a dequantize node",
    ),
    "int16 activations": (
        sixteen_bits,
        {},
        r"^dequantize_per_tensor_1 .*: quantizes to torch.int16; only torch.int8 and",
    ),
    "activations per channel": (per_channel_activation, A, r"quantize_per_channel\S* .*; "),
    "negative scale": (lambda m, x: qdq(x, -0.1), {}, r"scale -0.1 is not a positive number; calibrate the model"),
    "arithmetic with constants": (
        lambda m, x: u8(m.a(x) * 0.5),
        A,
        r"^mul \(aten.mul.Tensor\): computes with a constant in float; only the normalisation of the image",
    ),
    "product of activations": (
        lambda m, x: u8(x * m.a(x)),
        A,
        r"^mul \(aten.mul.Tensor\): multiplies activations; that has no integer form here$",
    ),
    "quotient of activations": (lambda m, x: u8(x / m.a(x)), A, r"^div_1 .*: divides by an activation"),
    "difference of activations": (lambda m, x: u8(m.a(x) - x), A, r"^sub_1 .*: subtracts activations"),
    "codes as constants": (
        lambda m, x: u8(m.a(x) - quantized.quantize_per_tensor.default(x, 0.1, 0, 0, 255, torch.uint8)),
        A,
        r"^sub_1 \(aten.sub.Tensor\): computes with a constant in float",
    ),
    "weighted sum": (lambda m, x: u8(torch.add(m.a(x), x, alpha=2)), A, r"^add .*: adds 2 times its second operand"),
    "broadcast sum": (lambda m, x: u8(m.a(x) + x.mean((2, 3), keepdim=True)), A, r"^add .*: broadcasts one activation"),
    "batch normalization": (
        lambda m, x: u8(m.bn(m.a(x))),
        BN,
        r"^batch_norm \(aten.batch_norm\): batch normalization is not folded; put it directly behind a convolution",
    ),
    "dropout in training": (
        lambda m, x: functional.dropout(x, 0.5, True),
        {},
        r"^dropout \(aten.dropout\): dropout is in training mode; call move_exported_model_to_eval",
    ),
    "clamp without 0": (
        lambda m, x: u8(m.a(x).clamp(1, 2)),
        A,
        r"^clamp \(aten.clamp\): clamps to an interval without 0",
    ),
    "other padding": (
        lambda m, x: functional.pad(x, (1, 1, 1, 1), value=1.0),
        {},
        r"^pad \(aten.pad\): pads with something other than 0",
    ),
    "reflection": (
        lambda m, x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
        {},
        r"^pad \(aten.pad\): pads with something other than 0",
    ),
    "cropping by padding": (
        lambda m, x: functional.pad(x, (-1, 0)),
        {},
        r"^pad \(aten.pad\): pads by \[-1, 0\]; crop with",
    ),
    "reshape": (
        lambda m, x: x.reshape(x.shape[0], 8, 4, 9),
        {},
        r"^reshape .*: reshapes \[N, 4, 9, 8\] to \[N, 8, 4, 9\]; only flattening an image has an integer form$",
    ),
    "batch mixed": (
        lambda m, x: x.reshape(x.shape[0] // 2, -1),
        {},
        r"^reshape .*: reshapes \[N, 4, 9, 8\] to another batch size",
    ),
    "slice of the batch": (lambda m, x: x[1:], {}, r"^slice_1 .*: slices the batch"),
    "join along rows": (lambda m, x: torch.cat([x, x], 2), {}, r"^cat \(aten.cat\): joins along another axis"),
    "mean over channels": (lambda m, x: u8(x.mean(1)), {}, r"^mean \(aten.mean.dim\): averages over axes \[1\]"),
    "linear on images": (
        lambda m, x: u8(m.line(x)),
        {"line": Weights(5, 8)},
        r"^linear \(aten.linear\): is applied to \[N, 4, 9, 8\]; flatten its input to a vector$",
    ),
    "pool of vectors": (
        lambda m, x: u8(x.flatten(1)[:, :100]),
        {},
        r"^slice_1 .*: is applied to \[N, 288\]; it has an integer form for \[N, C, H, W\] only$",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str):
    body, modules, message = REFUSALS[name]
    program = export(Program(body, **modules).eval())
    with pytest.raises(ModelError, match=message) as caught:
        import_program(program)
    assert "\n" not in str(caught.value)


def test_all_problems_are_listed_once():
    def body(m, x):
        y = u8(torch.sigmoid(m.a(x)))
        z = u8(m.b(m.a(x).relu()))  # a float island, independent of the first problem
        return u8((y.tanh() + z).relu())  # unsupported again, and adds what is already unknown

    program = export(Program(body, **AB).eval())
    problems = list_problems(program)
    assert [p.split(" ")[0] for p in problems] == ["sigmoid", "conv2d_3", "tanh"]
    assert all("\n" not in p for p in problems)
    assert refusal(program) == problems[0] + " (and 2 more: compile --dry-run lists them)"


def test_nothing_to_list():
    assert list_problems(export(Program(lambda m, x: x).eval())) == []


class Whole(nn.Module):
    def __init__(self, body, **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x, *more):
        return self.body(self, x, *more)


FC = {"fc": Weights(5, 75)}


def test_float_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 5)).eval()
    message = refusal(torch.export.export(model, (torch.zeros(2, 3, 5, 5),)))
    assert message == "the program is a float model, without quantize nodes; quantize it with PT2E first"


def test_float_output_of_a_sum():
    program = Whole(lambda m, x: m.fc(qdq(x, 0.02).flatten(1)) + qdq(m.fc(qdq(x, 0.02).flatten(1)), 0.1), **FC)
    message = refusal(export(program, (3, 5, 5)))
    assert message.startswith(
        "add (aten.add.Tensor): the output is neither quantized nor a convolution or linear layer"
    )


def test_output_that_is_an_image():
    assert "not a vector of logits" in refusal(export(Whole(lambda m, x: qdq(x, 0.02)), (3, 5, 5)))


def test_output_that_is_a_constant():
    model = Whole(lambda m, x: (qdq(x, 0.02), torch.ones(3))[1])
    assert "the output does not depend on the input" in refusal(export(model, (3, 5, 5)))


def test_more_inputs_or_outputs_than_one():
    two_in = Whole(lambda m, x, y: m.fc(qdq(x + y, 0.02).flatten(1)), **FC)
    images = torch.zeros(2, 3, 5, 5)
    message = refusal(torch.export.export(two_in, (images, images)))
    assert message.startswith("the program has 2 inputs and 1 outputs; export a module")
    two_out = Whole(lambda m, x: (m.fc(qdq(x, 0.02).flatten(1)), x), **FC)
    assert refusal(export(two_out, (3, 5, 5))).startswith("the program has 1 inputs and 2 outputs; export")


@pytest.mark.parametrize(
    ("example", "shown"),
    [(torch.zeros(2, 75), "float32 [2, 75]"), (torch.zeros(2, 3, 5, 5, dtype=torch.uint8), "uint8 [2, 3, 5, 5]")],
)
def test_input_that_is_no_image(example: torch.Tensor, shown: str):
    program = Whole(lambda m, x: m.fc(qdq(x.float(), 0.02).flatten(1)), **FC)
    message = refusal(torch.export.export(program, (example,)))
    assert message.startswith(f"input x is {shown}; export the model for float images [N, C, H, W] in [0, 1]")


def test_image_of_free_size():
    model = Whole(lambda m, x: m.fc(qdq(x, 0.02).mean((2, 3))), fc=Weights(5, 3))
    program = torch.export.export(
        model, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({2: torch.export.Dim("height", min=2, max=64)},)
    )
    assert "with fixed C, H and W" in refusal(program)


def test_accumulator_overflow():
    weights = Weights(5, 3 * 220 * 220)
    weights.codes.fill_(127)
    model = Whole(lambda m, x: m.fc(qdq(x, 0.02).flatten(1)), fc=weights)
    message = refusal(export(model, (3, 220, 220), 1))
    assert message.startswith("linear (aten.linear): the accumulator of channel 0 can reach ")
    assert message.endswith("over 2**31; use fewer input channels")


def test_scales_beyond_both_schemes():
    model = Whole(lambda m, x: m.fc(qdq(m.a(qdq(x, 0.02)), 1e-7).flatten(1)), a=conv(3, 3, 1, 1), **FC)
    assert refusal(export(model, (3, 5, 5))).startswith(
        "conv2d (aten.conv2d): no 64-bit requantization scales channel 0 by"
    )


def test_unknown_scheme():
    assert refusal(export(Program(lambda m, x: x).eval()), "q7") == (
        "unknown requantization scheme 'q7'; choose auto, q15 or q31"
    )


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "model.pt2"
    torch.export.save(
        export(Program(lambda m, x: x).eval()), path, extra_files={"intcert.json": json.dumps({"sigma": "0.25"})}
    )
    return path


def test_a_file_imports_as_the_program_in_memory(saved: Path):
    assert import_program(saved).digest == import_program(export(Program(lambda m, x: x).eval())).digest
    assert import_program(str(saved)).digest == import_program(torch.export.load(saved)).digest


def test_a_file_imports_without_torchao(saved: Path):
    program = (
        "import sys; sys.modules['torchao'] = None\n"
        "from intcert.compile.frontend import import_program\n"
        "print(import_program(sys.argv[1]).scheme)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(saved)], capture_output=True, text=True, check=True)
    assert run.stdout == "q15\n"


def test_without_torch_the_message_says_what_to_install():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import intcert.compile.graph, intcert.compile.requantize\n"
        "from intcert.runtime.errors import MissingDependencyError\n"
        "try: import intcert.compile.frontend\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "importing a model needs torch: pip install 'intcert[torch]'\n"


def test_metadata(saved: Path, tmp_path: Path):
    assert read_metadata(saved) == {"sigma": "0.25"}
    bare = tmp_path / "bare.pt2"
    torch.export.save(export(Program(lambda m, x: x).eval()), bare)
    assert read_metadata(bare) == {}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_metadata(tmp_path: Path, content: str):
    path = tmp_path / "damaged.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("damaged/extra/intcert.json", content)
    with pytest.raises(ModelError, match=r"intcert.json.*; save the model again"):
        read_metadata(path)


@pytest.mark.parametrize("open_file", [import_program, list_problems, read_metadata])
def test_files_that_are_no_programs(open_file, tmp_path: Path):
    with pytest.raises(ModelError, match=r"missing.pt2' is not a file; give a program saved by torch.export.save"):
        open_file(tmp_path / "missing.pt2")
    with pytest.raises(ModelError, match="is not a file"):
        open_file(tmp_path)
    text = tmp_path / "text.pt2"
    text.write_text("weights")
    with pytest.raises(ModelError, match=r"text.pt2' is not a .pt2 file; save the program with torch.export.save"):
        open_file(text)


def test_archives_that_are_no_programs(tmp_path: Path):
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "other.pt2' is not a program that this PyTorch" in refusal(path)
    weights = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, weights)
    assert "is not a program that this PyTorch" in refusal(weights)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(saved: Path, tmp_path: Path):
    path = tmp_path / "locked.pt2"
    path.write_bytes(saved.read_bytes())
    path.chmod(0)
    assert refusal(path).endswith("is not readable; check its permissions")
