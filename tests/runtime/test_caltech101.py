"""``caltech101:DIR``: classes, split and crops, and one line for whatever is missing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intcert.runtime.datasets import open_dataset
from intcert.runtime.datasets.caltech101 import centre_crop
from intcert.runtime.errors import DatasetError

NAMES = sorted(["Faces", "accordion", *(f"class{number:02}" for number in range(99))])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """101 classes of 5 images, the background class, and files that are none."""
    folder = tmp_path_factory.mktemp("caltech") / "101_ObjectCategories"
    pixels = np.zeros((30, 40, 3), np.uint8)
    for name in (*NAMES, "BACKGROUND_Google"):
        (folder / name).mkdir(parents=True)
        for number in range(1, 6):
            Image.fromarray(pixels).save(folder / name / f"image_{number:04}.jpg", quality=30)
    Image.fromarray(np.full((300, 200), 77, np.uint8)).save(folder / "Faces" / "image_0001.jpg", quality=95)
    (folder / "Faces" / "Thumbs.db").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    return folder.parent


def refusal(source: object, *arguments: object, **keywords: object) -> str:
    with pytest.raises(DatasetError) as caught:
        list(open_dataset(f"caltech101:{source}", *arguments, **keywords))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels(root: Path, split: str) -> list[int]:
    dataset = open_dataset(f"caltech101:{root}", split)
    return [dataset._files[index][1] for index in range(len(dataset))]


def files(root: Path, split: str) -> set[str]:
    return {name for name, _ in open_dataset(f"caltech101:{root}", split)._files}


def test_four_fifths_of_every_class_are_for_training(root):
    train, test = files(root, "train"), files(root, "test")
    assert not train & test
    assert len(train | test) == 101 * 5
    assert labels(root, "test") == list(range(101))
    assert labels(root, "train") == [label for label in range(101) for _ in range(4)]
    assert not any(name.startswith("BACKGROUND") for name in train | test)


def test_the_split_is_fixed(root):
    """Known answers: another split would make every earlier result incomparable."""
    assert sorted(files(root, "test"))[:4] == [
        "Faces/image_0001.jpg",
        "accordion/image_0004.jpg",
        "class00/image_0004.jpg",
        "class01/image_0004.jpg",
    ]
    assert files(root / "101_ObjectCategories", "test") == files(root, "test")


def test_names_are_in_the_order_of_their_bytes(root):
    dataset = open_dataset(f"caltech101:{root}")
    assert dataset.class_names == tuple(NAMES)
    assert dataset.class_names[0] == "Faces"
    assert open_dataset(f"caltech101:{root}", "train").identity != dataset.identity


def test_images_are_rgb_crops_of_224(root):
    dataset = open_dataset(f"caltech101:{root}", shape=(224, 224, 3), classes=101)
    sample = dataset[3]
    assert (sample.index, sample.label) == (3, 3)
    assert sample.image.shape == (224, 224, 3)
    assert sample.image.dtype == np.uint8
    part = "train" if "Faces/image_0001.jpg" in files(root, "train") else "test"
    grey = next(s for s in open_dataset(f"caltech101:{root}", part) if s.image.min() > 0)
    assert grey.label == 0
    assert np.abs(grey.image.astype(int) - 77).max() <= 1
    with pytest.raises(IndexError):
        dataset[101]


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256), (150, 500)])
def test_the_crop_is_the_centre_of_the_scaled_image(width, height):
    """A picture whose red rises from left to right and whose green rises downwards."""
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    ramp[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    crop = centre_crop(Image.fromarray(ramp))
    assert crop.shape == (224, 224, 3)
    for channel, extent, other in ((0, width, height), (1, height, width)):
        middle = crop[111:113, 111:113, channel].mean()
        assert middle == pytest.approx(127.5, abs=2)
        shown = 224 / 256 * min(1, other / extent)  # share of the extent that the crop keeps
        spread = int(crop[..., channel].max()) - int(crop[..., channel].min())
        assert spread == pytest.approx(255 * shown, abs=4)


def test_what_is_missing_is_said_in_one_line(root, tmp_path):
    assert "unpack caltech-101.zip" in refusal(tmp_path / "nowhere")
    assert "has 0 of 101 class folders; unpack caltech-101.zip" in refusal(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(root / "101_ObjectCategories", copy)
    shutil.rmtree(copy / "Faces")
    assert "has 100 of 101 class folders" in refusal(copy)


def test_what_does_not_fit_is_said_in_one_line(root, tmp_path):
    assert "has no split 'validation'" in refusal(root, "validation")
    assert "the network takes 32 x 32 x 3" in refusal(root, shape=(32, 32, 3))
    assert "101 classes but the network has 1000" in refusal(root, classes=1000)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    torn = sorted(files(copy, "test"))[0]
    (copy / "101_ObjectCategories" / torn).write_bytes(b"torn")
    assert f"{torn} is not a readable image" in refusal(copy)
