"""``intcert quantize``: a float model of either form becomes a program that compiles, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from intcert.train.models import MODELS  # noqa: E402
from intcert.train.program import export_float, is_quantized, load_program, save_program  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A float LeNet as a state dict and as a program, and calibration images."""
    path = tmp_path_factory.mktemp("float")
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(70, 28, 28, 1), dtype=np.uint8)
    np.savez(path / "digits.npz", images=images, labels=np.arange(70) % 4)
    torch.manual_seed(0)
    network = MODELS["lenet"](num_classes=4)
    torch.save(network.state_dict(), path / "lenet.pt")
    program = export_float(network, torch.zeros(2, 1, 28, 28))
    save_program(program, path / "float.pt2", {"recipe": "float", "sigma": "0.5", "class_names": list("abcd")})
    save_program(program, path / "bare.pt2", {})
    return path


def words(folder, model, output, *more):
    return ("quantize", folder / model, "--data", f"npz:{folder / 'digits.npz'}", "-o", output, *more)


def test_a_state_dict_is_quantized_and_compiles(intcert, folder, tmp_path):
    output = tmp_path / "m.pt2"
    more = ("--arch", "lenet", "--sigma", ".250", "--images", 70, "--threads", 1)
    result = intcert(*words(folder, "lenet.pt", output, *more))
    assert result.exit_code == 0, result.output
    assert "0.25 on the [0, 1] scale = 63.75 pixel steps" in result.stdout
    program, metadata = load_program(output)
    assert is_quantized(program)
    assert (metadata["recipe"], metadata["arch"], metadata["sigma"]) == ("post-training", "lenet", "0.25")
    assert metadata["class_names"] == ["0", "1", "2", "3"]
    assert intcert("compile", output, "-o", tmp_path / "m.intcert").exit_code == 0


def test_a_float_program_brings_sigma_and_names(intcert, folder, tmp_path):
    assert intcert(*words(folder, "float.pt2", tmp_path / "m.pt2", "--images", 8)).exit_code == 0
    metadata = load_program(tmp_path / "m.pt2")[1]
    assert (metadata["sigma"], metadata["class_names"]) == ("0.5", list("abcd"))
    assert metadata["calibration"]["images"] == 8


def test_the_same_seed_writes_the_same_file(intcert, folder, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        more = ("--images", 8, "--seed", seed)
        assert intcert(*words(folder, "float.pt2", tmp_path / f"{name}.pt2", *more)).exit_code == 0
    one, two, three = ((tmp_path / f"{name}.pt2").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_users_errors(refused, intcert, folder, tmp_path):
    output = tmp_path / "m.pt2"
    refused(*words(folder, "lenet.pt", output, "--sigma", "0.25"), saying=("lenet.pt", "--arch"))
    refused(*words(folder, "lenet.pt", output, "--sigma", "0.25", "--arch", "vgg19"), saying=("vgg19", "resnet20"))
    refused(*words(folder, "lenet.pt", output, "--sigma", "0.25", "--arch", "mlp"), saying=("do not fit mlp",))
    refused(*words(folder, "bare.pt2", output), saying=("bare.pt2", "--sigma 0.25"))
    refused(*words(folder, "float.pt2", output, "--arch", "lenet"), saying=("leave --arch out",))
    refused(*words(folder, "float.pt2", output, "--sigma", "64"), saying=("'64'",))
    refused(*words(folder, "missing.pt2", output), saying=("missing.pt2",))
    refused(*words(folder, "missing.pt", output, "--sigma", "0.25", "--arch", "lenet"), saying=("missing.pt",))
    assert not output.exists()
    assert intcert(*words(folder, "float.pt2", output, "--images", 8)).exit_code == 0
    refused("quantize", output, "--data", "npz:x.npz", "-o", tmp_path / "n.pt2", saying=("quantized already",))
