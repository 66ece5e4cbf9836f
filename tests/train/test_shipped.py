"""The shipped model and images are what cli/demo/README.md says."""

from pathlib import Path

import pytest
import torch

from intcert.runtime.datasets import open_dataset
from intcert.runtime.noise import noise_law
from intcert.train.data import NoiseSampler, load_images
from intcert.train.loop import accuracy
from intcert.train.models import MODELS
from intcert.train.program import load_program

SHIPPED = Path(__file__).resolve().parents[2] / "cli" / "demo"


@pytest.fixture(scope="module")
def shipped():
    return load_program(SHIPPED / "resnet20.pt2")


def test_shipped_files_are_small():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 1_500_000


def test_shipped_model_is_a_quantized_resnet20(shipped):
    program, metadata = shipped
    assert metadata["sigma"] == "0.25"
    tensors = [*program.state_dict.values(), *program.constants.values()]
    parameters = [p.numel() for p in MODELS["resnet20"]().parameters() if p.ndim > 1]
    assert sorted(v.numel() for v in tensors if getattr(v, "dtype", None) == torch.int8) == sorted(parameters)
    for batch in (1, 7):
        assert program.module()(torch.rand(batch, 3, 32, 32)).shape == (batch, 10)


def test_shipped_images_are_the_first_two_of_each_class(shipped, cifar10_test_images):
    data = load_images(open_dataset(f"folder:{SHIPPED / 'images'}"))
    metadata = shipped[1]
    assert data.classes == tuple(metadata["class_names"])
    expected = cifar10_test_images(per_class=2)
    assert torch.equal(data.images, expected.images)
    assert torch.equal(data.labels, expected.labels)


@pytest.mark.slow
def test_shipped_model_classifies_noisy_images(shipped, cifar10_test_images):
    """The accuracy that cli/demo/README.md states, within what another processor's float rounding may move."""
    noisy = accuracy(shipped[0].module(), cifar10_test_images(per_class=500), NoiseSampler(noise_law("0.25")))
    assert noisy == pytest.approx(0.7554, abs=0.002)
