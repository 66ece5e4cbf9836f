"""``mnist:DIR``: MNIST (LeCun, Cortes and Burges, 1998) and its relatives in IDX files, gzipped or not."""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

from intcert.runtime.datasets.base import ArrayDataset, Shape, unknown_split
from intcert.runtime.errors import DatasetError

_PREFIXES = {"test": "t10k", "train": "train"}
_MAX_BYTES = 1 << 32


def open_mnist(source: str, root: Path, split: str, shape: Shape | None, classes: int | None) -> ArrayDataset:
    """t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, or train-..., with or without ``.gz``, in DIR."""
    if split not in _PREFIXES:
        raise unknown_split(source, split)
    images = _read_idx(_find(source, root, split, "images", 3), 3)
    labels = _read_idx(_find(source, root, split, "labels", 1), 1)
    return ArrayDataset(source, split, (), images[..., None], labels.astype(np.int64), shape, classes)


def _find(source: str, root: Path, split: str, content: str, dimensions: int) -> Path:
    """The one file of its kind; parts of MNIST carry a word more in their names (t10k-first5000-...)."""
    usual = f"{_PREFIXES[split]}-{content}-idx{dimensions}-ubyte"
    pattern = re.compile(rf"{_PREFIXES[split]}-([\w]+-)?{content}[-.]idx{dimensions}-ubyte(\.gz)?")
    try:
        names = sorted(path.name for path in root.iterdir() if pattern.fullmatch(path.name))
    except OSError as error:
        raise DatasetError(f"{source} cannot be read ({error.strerror}); place {usual}.gz in {root}") from error
    # The packed twin of an unpacked file says the same.
    names = [name for name in names if name.removesuffix(".gz") not in names or not name.endswith(".gz")]
    if not names:
        raise DatasetError(f"{source} has no {usual}; place it, gzipped or not, in {root}")
    if len(names) > 1:
        raise DatasetError(f"{source} has {' and '.join(names)}; leave one of them")
    return root / names[0]


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes with this many dimensions."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if magic != bytes((0, 0, 8, dimensions)):
                raise ValueError(f"it begins with {magic.hex()} instead of 0000080{dimensions}")
            extents = np.frombuffer(file.read(4 * dimensions), ">u4")
            size = int(np.prod(extents, dtype=object))
            if len(extents) != dimensions or size > _MAX_BYTES:
                raise ValueError(f"its extents are {extents.tolist()}")
            # One byte more than needed, to notice a longer file without reading all of it.
            content = file.read(size + 1)
        if len(content) != size:
            raise ValueError(f"it has {'more' if len(content) > size else 'fewer'} than {size} bytes")
    except (EOFError, zlib.error, ValueError, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is no IDX file, or damaged ({error}); place the original there") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
    return np.frombuffer(content, np.uint8).reshape(extents)
