"""ARM boards that QEMU emulates: counts through TVM's RPC equal those of this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from intcert.compile.build import compile_artifact
from intcert.runtime.artifact import read_artifact
from intcert.runtime.boards import Patience, Servers, open_board
from intcert.runtime.datasets import open_dataset
from intcert.runtime.remote import BoardCrashedError
from intcert.runtime.session import LocalSession

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "build" / "board"
DEMO = ROOT / "cli" / "demo"
KEY = 0xFEDCBA9876543210
SAMPLES = 128
TARGETS = {"cortex-a72": "arm-a72", "cortex-a76": "arm-a76"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def board_python(tmp_path_factory) -> str:
    """The emulated board's Python; made once and kept in build/."""
    for tool in ("qemu-aarch64-static", "apt-get", "flock"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, which board/emulated.sh needs")
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.importorskip("ziglang", reason="no linker for aarch64: pip install 'intcert[cross]'")
    done = subprocess.run([ROOT / "board" / "emulated.sh", BOARD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(BOARD / "python")


@pytest.fixture
def board(service, board_python, monkeypatch):
    """Starts an emulated board with this processor."""

    def start(cpu: str):
        monkeypatch.setenv("QEMU_CPU", cpu)
        return service("rpc_server", python=(board_python,))

    return start


@pytest.fixture(scope="session")
def lenet():
    """LeNet with random weights, quantized."""
    torch = pytest.importorskip("torch")
    from intcert.compile.quantizer import convert, prepare_calibration
    from intcert.train.models import MODELS

    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(7)
    images = torch.rand(8, 1, 28, 28, generator=generator)
    prepared = prepare_calibration(MODELS["lenet"](), images)
    prepared(images * 1.6 - 0.3)
    return convert(prepared, images)


def demo_images() -> list[np.ndarray]:
    dataset = open_dataset(f"folder:{DEMO / 'images'}", "test", shape=(32, 32, 3), classes=10)
    return [dataset[index].image for index in (0, 5, 9)]


def counts(model: object, folder: Path, target: str, images: list[np.ndarray], board=None) -> np.ndarray:
    """Counts of the images on a board, or on this machine: int32[images, rows, classes]."""
    path = folder / f"{target}.intcert"
    compile_artifact(model, path, target=target, sigma="0.25")
    artifact = read_artifact(path)
    if board is None:
        with LocalSession(artifact) as session:
            return np.stack([session.counts(image, KEY + i, 3, SAMPLES) for i, image in enumerate(images)])
    with open_board(artifact, Servers([board.address]), Patience(answer=300, board=60)) as session:
        return np.stack([session.counts(image, KEY + i, 3, SAMPLES) for i, image in enumerate(images)])


@pytest.mark.parametrize("cpu", TARGETS)
def test_the_shipped_network_counts_the_same(board, tmp_path, cpu):
    model, images = DEMO / "resnet20.pt2", demo_images()
    there = counts(model, tmp_path, TARGETS[cpu], images, board(cpu))
    assert there.sum() == 3 * SAMPLES
    np.testing.assert_array_equal(there, counts(model, tmp_path, "host", images))


@pytest.mark.parametrize("cpu", TARGETS)
def test_lenet_counts_the_same(board, tmp_path, lenet, cpu):
    images = list(np.random.default_rng(1).integers(0, 256, (3, 28, 28, 1), np.uint8))
    there = counts(lenet, tmp_path, TARGETS[cpu], images, board(cpu))
    assert there.sum() == 3 * SAMPLES
    np.testing.assert_array_equal(there, counts(lenet, tmp_path, "host", images))


def test_a_processor_without_dot_products_says_so(board, tmp_path, lenet):
    """A Cortex-A72 really dies of sdot, and nobody waits for it."""
    machine = board("cortex-a72")
    images = [np.zeros((28, 28, 1), np.uint8)]
    with pytest.raises(BoardCrashedError, match=r"processor lacks asimd, asimddp, compile .* than arm-a76"):
        counts(lenet, tmp_path, "arm-a76", images, machine)
    assert "error code -4" in machine.output  # SIGILL
