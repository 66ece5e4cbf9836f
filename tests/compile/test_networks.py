"""Whole networks: compiled logits equal the reference's, and both agree with PyTorch's fake-quantized model."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from intcert import targets
from intcert.compile.build import compile_artifact, load_model
from intcert.compile.frontend import import_program
from intcert.compile.graph import IntegerGraph
from intcert.compile.quantizer import convert, prepare_calibration
from intcert.compile.reference import ReferenceSession, run
from intcert.runtime.noise import noise_law
from intcert.runtime.session import open_artifact
from intcert.train.models import MODELS

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.gz"
DEMO = Path(__file__).parents[2] / "cli" / "demo" / "resnet20.pt2"
RUNNABLE = [target.name for target in targets.runnable()]
SMALL, LARGE = ("lenet", "mlp", "vgg", "resnet20"), ("mobilenetv2", "resnet50")
ARCHITECTURES = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


@functools.cache
def program(name: str) -> torch.export.ExportedProgram:
    """A network with random weights, quantized with random images."""
    torch.manual_seed(7)
    entry = MODELS[name]
    model = entry().train()
    channels, height, width = entry.input_shape
    images = torch.rand(4, channels, height, width)
    # Untrained batch normalisation lets deep networks fade or explode until it has seen a few batches.
    with torch.no_grad():
        for _ in range(20):
            model(images[:2])
    prepared = prepare_calibration(model, images[:2])
    with torch.no_grad():
        prepared(images * 1.6 - 0.3)
    return convert(prepared, images[:2])


@functools.cache
def case(name: str, scheme: str) -> tuple[IntegerGraph, np.ndarray, np.ndarray]:
    """Graph, 32 noisy images, and the reference's logits."""
    graph = import_program(program(name), scheme=scheme)
    rng = np.random.default_rng(3)
    shape = (32, *graph.input_shape)
    x = (rng.integers(0, 256, shape) + np.round(rng.normal(0, 64, shape))).astype(np.int16)
    return graph, x, np.concatenate([run(graph, part) for part in np.split(x, 8)])


@pytest.mark.parametrize("scheme", ["q15", "q31"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_equal_the_reference(name: str, scheme: str, tmp_path: Path) -> None:
    graph, x, expected = case(name, scheme)
    assert len(np.unique(expected, axis=0)) > 16, "the logits hardly depend on the image; the test would prove little"
    for target in RUNNABLE:
        compile_artifact(graph, tmp_path / target, target=target, sigma="0.25")
        with open_artifact(tmp_path / target, threads=2) as session:
            for n in (1, 7, 32):
                np.testing.assert_array_equal(session.logits(x[:n]), expected[:n], err_msg=f"{target}, batch {n}")


@pytest.fixture(scope="module")
def demo() -> IntegerGraph:
    return load_model(DEMO).graph


@pytest.fixture(scope="module")
def cifar() -> tuple[np.ndarray, np.ndarray]:
    """2,000 test images and their labels."""
    if not CIFAR.exists():
        pytest.skip("the CIFAR-10 archive is not at hand")
    images, labels = zip(*_test_images(), strict=True)
    return np.stack(images), np.array(labels)


def _test_images() -> Iterator[tuple[np.ndarray, int]]:
    classes: dict[str, int] = {}
    with tarfile.open(CIFAR) as archive:
        for member in archive:
            split, name, *file = member.name.split("/")
            if split == "test" and file and int(file[0].split(".")[0]) < 200:
                content = archive.extractfile(member).read()
                label = classes.setdefault(name, len(classes))
                yield np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), label


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "least"), [("q31", 0.995), ("q15", 0.99)])
def test_demo_agrees_with_fake_quantization(
    scheme: str, least: float, cifar: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Top-1 of the integers and of PyTorch's floats agree on real images; docs/arithmetic.md says why q15 less."""
    images, _ = cifar
    graph = import_program(DEMO, scheme=scheme)
    compile_artifact(graph, tmp_path / "a", target=RUNNABLE[-1], sigma="0.25")
    with open_artifact(tmp_path / "a") as session:
        integers = session.logits(images.astype(np.int16)).argmax(1)
    model = torch.export.load(DEMO).module()
    with torch.no_grad():
        parts = [model(torch.from_numpy(p).permute(0, 3, 1, 2).float() / 255) for p in np.split(images, 20)]
    floats = torch.cat(parts).argmax(1).numpy()
    assert len(images) == 2000
    assert (integers == floats).mean() >= least


SAMPLES = 2000
FIRSTS = (0, 100)


@pytest.fixture(scope="module")
def expected_counts(demo: IntegerGraph) -> list[tuple[np.ndarray, int, int, np.ndarray]]:
    """Three images: (image, key, first, the reference's rows)."""
    reference = ReferenceSession(demo, noise_law("0.25"))
    images = np.random.default_rng(11).integers(0, 256, (3, 8, 8, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    return [
        (image, key, first, reference.counts(image, key, first, SAMPLES))
        for key, image in enumerate(images, 2**63)
        for first in FIRSTS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNNABLE)
def test_demo_counts_equal_the_reference(
    target: str,
    demo: IntegerGraph,
    expected_counts: list[tuple[np.ndarray, int, int, np.ndarray]],
    tmp_path: Path,
) -> None:
    for chunk in (None, 3):
        path = tmp_path / f"{chunk}.intcert"
        compile_artifact(demo, path, target=target, sigma="0.25", chunk=chunk)
        for threads in (1, 2):
            with open_artifact(path, threads) as session:
                for image, key, first, rows in expected_counts:
                    np.testing.assert_array_equal(session.counts(image, key, first, SAMPLES), rows)
