"""``intcert train``: what every recipe writes, how a run goes on, and what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from intcert.cli import quantize as quantize_command  # noqa: E402
from intcert.cli import train as train_command  # noqa: E402
from intcert.train import devices, ranges, recipes  # noqa: E402
from intcert.train.models import MODELS  # noqa: E402
from intcert.train.program import is_quantized, load_program  # noqa: E402


@pytest.fixture
def digits(tmp_path):
    """Forty 28x28 grey images in four classes, in one file."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "digits.npz",
        images=rng.integers(256, size=(40, 28, 28, 1), dtype=np.uint8),
        labels=np.arange(40) % 4,
    )
    return f"npz:{tmp_path / 'digits.npz'}"


def words(digits, output, *more):
    base = ("train", "--arch", "lenet", "--data", digits, "--sigma", "0.250", "--epochs", 2, "--batch-size", 20)
    return (*base, "--no-flip", "--threads", 1, "--device", "cpu", "-o", output, *more)


def test_the_options_offer_what_there_is():
    choices = {p.name: set(p.type.choices) for p in train_command.command.params if hasattr(p.type, "choices")}
    assert choices["recipe"] == set(recipes.METHODS)
    assert choices["arch"] == set(MODELS)
    assert choices["schedule"] == set(recipes.SCHEDULES)
    assert choices["ranges"] == set(ranges.OBSERVERS)
    assert choices["device"] == set(devices.CHOICES)
    offered = {p.name: set(p.type.choices) for p in quantize_command.command.params if hasattr(p.type, "choices")}
    assert offered["ranges"] == set(ranges.OBSERVERS)


@pytest.mark.parametrize("recipe", recipes.METHODS)
def test_every_recipe_writes_its_program(intcert, digits, tmp_path, recipe):
    output = tmp_path / "m.pt2"
    result = intcert(*words(digits, output, "--recipe", recipe, "--test-data", digits))
    assert result.exit_code == 0, result.output
    assert "sigma 0.25 on the [0, 1] scale = 63.75 pixel steps" in result.stdout
    assert "clean accuracy" in result.stdout
    assert "on 40 images" in result.stdout
    program, metadata = load_program(output)
    assert is_quantized(program) == (recipe != "float")
    assert metadata["recipe"] == recipe
    assert metadata["arch"] == "lenet"
    assert metadata["sigma"] == "0.25"
    assert metadata["class_names"] == ["0", "1", "2", "3"]
    assert metadata["dataset"] == "digits.npz"
    assert metadata["mean"] == pytest.approx([0.1307])
    assert metadata["training"]["qat_epochs"] == (0 if recipe == "float" else 1)
    assert metadata["training"]["lr"] == 0.1
    assert (tmp_path / "m.run" / "log.csv").read_text().startswith("phase,step,epoch,lr,loss,images_per_s\nfloat,")


def test_the_regularizers_numbers_reach_the_recipe(intcert, digits, tmp_path):
    more = ("--recipe", "float", "--regularizer", "consistency", "--lambda", 5, "--eta", 0.1, "--m", 3)
    assert intcert(*words(digits, tmp_path / "m.pt2", *more)).exit_code == 0
    training = load_program(tmp_path / "m.pt2")[1]["training"]
    assert training["regularizer"] == {"strength": 5.0, "eta": 0.1, "noises": 3}


def test_first_weights_are_published_ones(intcert, digits, tmp_path):
    state = MODELS["lenet"](num_classes=4).state_dict()
    published = {f"module.{name}": value for name, value in state.items() if not name.startswith("normalize.")}
    torch.save({"state_dict": published}, tmp_path / "init.th")
    more = ("--recipe", "float", "--init", tmp_path / "init.th", "--lr", 0)
    assert intcert(*words(digits, tmp_path / "m.pt2", *more)).exit_code == 0
    found = load_program(tmp_path / "m.pt2")[0].state_dict
    # At a rate of 0 they stay what they were.
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_same_seed_same_file(intcert, digits, tmp_path):
    for name in ("one", "two"):
        assert intcert(*words(digits, tmp_path / f"{name}.pt2", "--seed", 3)).exit_code == 0
    assert (tmp_path / "one.pt2").read_bytes() == (tmp_path / "two.pt2").read_bytes()


def test_resuming_a_finished_run_writes_the_same_file(intcert, refused, digits, tmp_path):
    output = tmp_path / "m.pt2"
    assert intcert(*words(digits, output)).exit_code == 0
    before = output.read_bytes()
    refused(*words(digits, output), saying=("m.run/checkpoint.pt", "--resume"))
    refused(*words(digits, output, "--lr", 0.2, "--resume"), saying=("another lr",))
    output.unlink()
    assert intcert(*words(digits, output, "--resume")).exit_code == 0
    assert output.read_bytes() == before


def test_ctrl_c_says_how_to_go_on(digits, tmp_path):
    start = "from intcert.cli.main import main; main()"
    command = [sys.executable, "-c", start, *map(str, words(digits, tmp_path / "m.pt2"))]
    command += ["--recipe", "float", "--epochs", "100000"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "m.run" / "log.csv"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size > 100) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 130, stderr
    assert stderr.splitlines()[-1].startswith("interrupted: checkpoints are in ")
    assert not (tmp_path / "m.pt2").exists()


def test_users_errors_are_one_line_and_leave_nothing(refused, digits, tmp_path, monkeypatch):
    def refusal(*more, saying):
        refused(*words(digits, tmp_path / "m.pt2", *more), saying=saying)

    refusal("--sigma", "64", saying=("'64'", "[0, 1]"))
    refusal("--qat-epochs", 5, saying=("5 of 2 epochs",))
    refusal("--regularizer", "consistency", "--m", 1, saying=("m = 1",))
    refusal("--arch", "resnet20", saying=("28 x 28 x 1", "32 x 32 x 3"))
    refusal("--batch-size", 41, saying=("40 training images", "41"))
    refusal("--data", "npz:missing.npz", saying=("missing.npz",))
    (tmp_path / "torn.th").write_bytes(b"torn")
    refusal("--init", tmp_path / "torn.th", saying=("cannot read a state dict from", "torn.th"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refusal("--device", "cuda", saying=("--device cuda", "no GPU"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["digits.npz", "torn.th"]


def test_a_folder_that_cannot_be_written(refused, digits, tmp_path):
    refused(*words(digits, tmp_path / "no" / "m.pt2"), saying=("there is no folder",))


def test_torch_missing_is_exit_code_5(digits, tmp_path):
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchao"):
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Absent())
from intcert.cli.main import main
main({json.dumps([str(word) for word in words(digits, tmp_path / "m.pt2")])})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 5, done.stderr
    assert "pip install 'intcert[train]'" in done.stderr.splitlines()[-1]
