"""What every data source has in common."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from intcert.runtime.errors import DatasetError

Shape = tuple[int, int, int]


class Sample(NamedTuple):
    """One image. index: its position in the whole data set; label: its class; image: uint8[H, W, C]."""

    index: int
    label: int
    image: np.ndarray


class Dataset(ABC):
    """Labelled images in a fixed order.

    source: how the user named it; split: ``test``, ``train`` or another that it has; class_names: one a class, or none
    where they are unknown; identity: SHA-256 in hex that tells data sets apart when a run is resumed.
    """

    def __init__(self, source: str, split: str, class_names: tuple[str, ...], identity: str) -> None:
        self.source, self.split, self.class_names, self.identity = source, split, class_names, identity

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read the sample at a position 0 .. len - 1.

        Raises:
            DatasetError: it cannot be read, or does not have the shape that was asked for.
            IndexError: there is no such position.
        """

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.source} has the images 0 .. {len(self) - 1}, not {index}")


class ArrayDataset(Dataset):
    """Images and labels in memory; two sources with the same pixels and labels have the same identity."""

    def __init__(
        self,
        source: str,
        split: str,
        class_names: tuple[str, ...],
        images: np.ndarray,
        labels: np.ndarray,
        shape: Shape | None,
        classes: int | None,
    ) -> None:
        """images: uint8[n, H, W, C]; labels: int[n]; shape and classes: see ``open_dataset``.

        Raises:
            DatasetError: no images, another number of labels, images of another shape, a label out of range.
        """
        if len(images) == 0:
            raise DatasetError(f"{source} has no images; give a data set with at least one")
        if len(labels) != len(images):
            raise DatasetError(f"{source} has {len(images)} images but {len(labels)} labels; it is damaged")
        check_shape(source, images.shape[1:], shape)
        limit = min(filter(None, (classes, len(class_names))), default=None)
        wrong = (labels < 0) if limit is None else (labels < 0) | (labels >= limit)
        if wrong.any():
            index = int(np.argmax(wrong))
            allowed = "a class number" if limit is None else f"one of the classes 0 .. {limit - 1}"
            raise DatasetError(f"{source} has label {labels[index]} at image {index}, which is not {allowed}")
        self._images, self._labels = images, labels.astype("<i8")
        content = hashlib.sha256("x".join(map(str, images.shape)).encode() + b"\n")
        content.update(self._labels.tobytes())
        content.update(np.ascontiguousarray(images).data)
        super().__init__(source, split, class_names, content.hexdigest())

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        self._check_index(index)
        return Sample(index, int(self._labels[index]), np.ascontiguousarray(self._images[index]))


def check_shape(what: str, found: tuple[int, ...], wanted: Shape | None) -> None:
    """Raise DatasetError unless images have the wanted shape, where one is wanted."""
    if wanted is not None and tuple(found) != tuple(wanted):
        raise DatasetError(
            f"{what} is {_dimensions(found)} but the network takes {_dimensions(wanted)}; "
            "nothing is resized here, so bring images of that size"
        )


def unknown_split(source: str, split: str) -> DatasetError:
    """The error for a split that a data set with test and train images does not have."""
    return DatasetError(f"{source} has no split {split!r}; give test or train")


def _dimensions(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
