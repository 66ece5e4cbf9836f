"""``npz:FILE``: arrays ``images`` and ``labels`` saved by numpy.savez."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from intcert.runtime.datasets.base import ArrayDataset, Shape
from intcert.runtime.errors import DatasetError


def open_npz(source: str, path: Path, split: str, shape: Shape | None, classes: int | None) -> ArrayDataset:
    """``images`` uint8[n, H, W, C] and ``labels`` int[n]; the file has one set of images, whatever the split."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; save arrays images and labels there with numpy.savez") from error
    except KeyError as error:
        raise DatasetError(f"{path} has no array {error.args[0].split()[0]!r}; save images and labels") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, AttributeError, OSError) as error:
        raise DatasetError(f"{path} is not a readable npz file ({error}); save it again with numpy.savez") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DatasetError(f"{path} has images {images.dtype}{list(images.shape)}; save uint8[n, H, W, C]")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DatasetError(f"{path} has labels {labels.dtype}{list(labels.shape)}; save integers[n]")
    return ArrayDataset(source, split, (), images, labels, shape, classes)
