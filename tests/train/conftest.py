"""What the training tests share: one thread, and the real CIFAR-10 test images where they are."""

import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from intcert.train.data import ImageSet
from intcert.train.models import MODELS, FeedForward, ModelEntry

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Path of a file in the shared data folder; the test is skipped where it is missing."""

    def find(name: str) -> Path:
        if not (SHARED_DATA / name).exists():
            pytest.skip(f"needs {name} in the shared data folder")
        return SHARED_DATA / name

    return find


@pytest.fixture(scope="session")
def cifar10_test_images(shared_file) -> Callable[[int], ImageSet]:
    """The first images of each class of the JPEG test set."""

    def read(per_class: int) -> ImageSet:
        images, names = [], []
        with tarfile.open(shared_file("cifar10-jpeg.tar.gz")) as archive:
            for member in archive:
                split, *rest = Path(member.name).parts
                if member.isfile() and split == "test" and int(Path(rest[1]).stem) < per_class:
                    images.append(np.asarray(Image.open(archive.extractfile(member)).convert("RGB")))
                    names.append(rest[0])
        classes = tuple(sorted(set(names)))
        labels = torch.tensor([classes.index(name) for name in names])
        return ImageSet(torch.from_numpy(np.stack(images)), labels, classes)

    return read


@pytest.fixture
def write_images(tmp_path) -> Callable[..., Path]:
    """Writes random images into ``tmp_path/images[/split]``, a folder for each class; the path of ``images``."""

    def write(classes=("cat", "dog"), count=4, size=(32, 32), channels=3, split=".") -> Path:
        rng = np.random.default_rng(0)
        for name in classes:
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(256, size=(*size, channels), dtype=np.uint8)
                Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(folder / f"{index}.png")
        return tmp_path / "images"

    return write


def small(num_classes, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), normalized=False):
    """Dropout and, if wanted, batch normalization: what makes a run hard to repeat, in the least network that has it.

    torchao needs 10 seconds to prepare any graph with batch normalization.
    """
    norm = torch.nn.BatchNorm2d(4) if normalized else torch.nn.Identity()
    features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), norm, torch.nn.ReLU())
    classifier = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4 * 6 * 6, num_classes))
    return FeedForward(features, classifier, mean, std)


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """Adds ``small`` and ``small_bn``, for 8x8 images, to the registry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "small", ModelEntry(small, (3, 8, 8)))
        patch.setitem(MODELS, "small_bn", ModelEntry(partial(small, normalized=True), (3, 8, 8)))
        yield


@pytest.fixture(scope="session")
def random_images() -> Callable[..., ImageSet]:
    """Random 8x8 images in three classes."""

    def make(count: int = 12) -> ImageSet:
        images = torch.randint(256, (count, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
        return ImageSet(images, torch.arange(count) % 3, ("x", "y", "z"))

    return make
