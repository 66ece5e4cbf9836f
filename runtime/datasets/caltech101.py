"""``caltech101:DIR``: Caltech-101 (Fei-Fei, Fergus and Perona, 2004) as 224 x 224 crops with a fixed split.

The data set has no split of its own. Here, four fifths of every class are for training and the rest for testing, chosen
by a hash of the files' names: the same on every machine, with any version of Python and NumPy.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from intcert.runtime.datasets.base import Dataset, Sample, Shape, check_shape, unknown_split
from intcert.runtime.errors import DatasetError

CLASSES = 101
SIDE = 224

_FOLDER = "101_ObjectCategories"
_BACKGROUND = "BACKGROUND_Google"
_SHORT_SIDE = 256  # before the crop, as torchvision's ImageNet weights expect it
_TRAIN_PERCENT = 80
_SEED = "intcert"


class Caltech101(Dataset):
    """Photographs decoded as they are asked for: RGB, shorter side 256 pixels, centre crop 224 x 224.

    The identity covers names and sizes of the files; their pixels are in the ledger, image by image.
    """

    def __init__(self, source: str, root: Path, split: str, names: tuple[str, ...], files: list[tuple[str, int]]):
        """files: (path relative to root, label) in order."""
        self._root, self._files = root, files
        content = hashlib.sha256("\n".join(names).encode())
        for name, label in files:
            content.update(f"\n{name}\0{label}\0{os.stat(root / name).st_size}".encode("utf-8", "surrogateescape"))
        super().__init__(source, split, names, content.hexdigest())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        self._check_index(index)
        name, label = self._files[index]
        try:
            with Image.open(self._root / name) as file:
                return Sample(index, label, centre_crop(file.convert("RGB")))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
            raise DatasetError(f"{self._root / name} is not a readable image ({error}); unpack it again") from error


def open_caltech101(source: str, root: Path, split: str, shape: Shape | None, classes: int | None) -> Caltech101:
    """DIR/101_ObjectCategories/CLASS/image_NNNN.jpg, or DIR/CLASS/..., without the class of background images."""
    if split not in ("train", "test"):
        raise unknown_split(source, split)
    check_shape(source, (SIDE, SIDE, 3), shape)
    if classes is not None and classes != CLASSES:
        raise DatasetError(f"{source} has {CLASSES} classes but the network has {classes}; train it on this data set")
    if (root / _FOLDER).is_dir():
        root = root / _FOLDER
    try:
        found = sorted((entry.name for entry in os.scandir(root) if entry.is_dir()), key=os.fsencode)
        names = tuple(name for name in found if name != _BACKGROUND and not name.startswith("."))
        if len(names) != CLASSES:
            raise DatasetError(
                f"{source} has {len(names)} of {CLASSES} class folders; "
                f"unpack caltech-101.zip and the {_FOLDER}.tar.gz in it into {root}"
            )
        files = [
            (f"{name}/{file}", label)
            for label, name in enumerate(names)
            for file in _part(name, sorted(os.listdir(root / name), key=os.fsencode), split)
        ]
        return Caltech101(source, root, split, names, files)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{source} is no folder; unpack caltech-101.zip and the {_FOLDER}.tar.gz in it into {root}"
        ) from error
    except OSError as error:
        raise DatasetError(f"{error.filename} cannot be read ({error.strerror})") from error


def centre_crop(image: Image.Image) -> np.ndarray:
    """uint8[224, 224, 3]: the image's shorter side scaled to 256 pixels, bilinear, and its centre cut out."""
    scale = _SHORT_SIDE / min(image.size)
    width, height = (max(SIDE, round(extent * scale)) for extent in image.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(scaled.crop((left, top, left + SIDE, top + SIDE)))


def _part(name: str, files: list[str], split: str) -> list[str]:
    """The files of a class that belong to a split, in their order."""
    images = [file for file in files if file.lower().endswith((".jpg", ".jpeg"))]
    ranked = sorted(images, key=lambda file: hashlib.sha256(os.fsencode(f"{_SEED}/{name}/{file}")).digest())
    train = set(ranked[: round(len(ranked) * _TRAIN_PERCENT / 100)])
    return [file for file in images if (file in train) == (split == "train")]
