"""Data sources as the command line names them.

``folder:DIR``, ``cifar10:DIR``, ``mnist:DIR``, ``caltech101:DIR`` and ``npz:FILE``.
"""

from collections.abc import Callable
from pathlib import Path

from intcert.runtime.datasets.base import Dataset, Sample, Shape
from intcert.runtime.datasets.caltech101 import open_caltech101
from intcert.runtime.datasets.cifar10 import open_cifar10
from intcert.runtime.datasets.folder import open_folder
from intcert.runtime.datasets.mnist import open_mnist
from intcert.runtime.datasets.npz import open_npz
from intcert.runtime.errors import DatasetError

__all__ = ["Dataset", "Sample", "open_dataset"]

_OPENERS: dict[str, Callable[[str, Path, str, Shape | None, int | None], Dataset]] = {
    "folder": open_folder,
    "cifar10": open_cifar10,
    "mnist": open_mnist,
    "caltech101": open_caltech101,
    "npz": open_npz,
}
_FORMS = [f"{kind}:DIR" for kind in _OPENERS if kind != "npz"]


def open_dataset(
    source: str, split: str = "test", *, shape: Shape | None = None, classes: int | None = None
) -> Dataset:
    """Open a data source.

    source: ``folder:DIR``, ``cifar10:DIR``, ``mnist:DIR``, ``caltech101:DIR`` or ``npz:FILE``; split: ``test`` or
    ``train`` where the source has them (an npz file has none and ignores it); shape: the (H, W, C) that every image
    must have, nothing but Caltech-101 is resized (an image folder decodes to grey for C = 1 and to RGB for C = 3 or
    where no shape is given); classes: how many the network knows, every label must lie below.

    Raises:
        DatasetError: unknown kind of source, missing or empty folder, unreadable or damaged file, another image size,
            a label out of range. An image folder's files are only read, and checked, on access.
    """
    kind, colon, path = source.partition(":")
    if kind not in _OPENERS or not colon or not path:
        raise DatasetError(f"data {source!r} is unknown; give {', '.join(_FORMS)} or npz:FILE")
    return _OPENERS[kind](source, Path(path).expanduser(), split, shape, classes)
