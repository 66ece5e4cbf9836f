"""A small classifier that several tests share: it tells red, green and blue images apart, and can be certified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = ("blue", "green", "red")
SIDE = 8
SIGMA = "0.25"


def colour_images(folder: Path) -> Path:
    """Two clear images of each colour, and as red/2.png a grey one about which the classifier cannot be sure."""
    rng = np.random.default_rng(1)
    for name, channel in zip(COLOURS, (2, 1, 0), strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            image = rng.integers(20, 60, (SIDE, SIDE, 3), dtype=np.uint8)
            image[..., channel] += 140
            Image.fromarray(image).save(folder / name / f"{number}.png")
    Image.fromarray(np.full((SIDE, SIDE, 3), 110, np.uint8)).save(folder / "red" / "2.png")
    return folder


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of seven 8x8 images in the classes blue, green and red; the grey one is the last."""
    return colour_images(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture(scope="session")
def colour_network():
    """The classifier as a float torch module: 3x3 means of each channel, then their average over the image."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 3, padding=1, bias=False),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(3, 3),
    )
    with torch.no_grad():
        network[0].weight.zero_()
        for output, channel in enumerate((2, 1, 0)):
            network[0].weight[output, channel] = 1 / 9
        network[4].weight.copy_(torch.eye(3))
        network[4].bias.zero_()
    return network.eval()


@pytest.fixture(scope="session")
def colour_program(colour_network):
    """The classifier, quantized: an ExportedProgram."""
    torch = pytest.importorskip("torch")
    from intcert.compile.quantizer import convert, prepare_calibration

    images = torch.rand(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    prepared = prepare_calibration(colour_network, images)
    # Noise leaves [0, 1], so the calibration has to see that range too.
    prepared(2 * images - 0.5)
    return convert(prepared, images)


@pytest.fixture(scope="session")
def colour_model(colour_program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quantized classifier as a .pt2 file that carries sigma and the class names."""
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("model") / "colours.pt2"
    metadata = {"sigma": SIGMA, "class_names": list(COLOURS)}
    torch.export.save(colour_program, path, extra_files={"intcert.json": json.dumps(metadata)})
    return path


@pytest.fixture(scope="session")
def colour_artifact(colour_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier compiled for this machine."""
    from intcert.compile.build import compile_artifact

    path = tmp_path_factory.mktemp("artifact") / "colours.intcert"
    compile_artifact(colour_model, path, target="host")
    return path
