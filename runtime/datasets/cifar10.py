"""``cifar10:DIR``: CIFAR-10 (Krizhevsky, 2009) in its original python and binary formats.

The python batches are pickles, and unpickling can run any code. These are read with an unpickler that knows a handful
of names, each bound to a stand-in which stores what it is given: neither NumPy nor anything else is called.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from intcert.runtime.datasets.base import ArrayDataset, Shape, unknown_split
from intcert.runtime.errors import DatasetError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIDE, _CHANNELS = 32, 3
_PIXELS = _SIDE * _SIDE * _CHANNELS
_BATCHES = {"test": ("test_batch",), "train": tuple(f"data_batch_{number}" for number in range(1, 6))}
_SUBFOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")


def open_cifar10(source: str, root: Path, split: str, shape: Shape | None, classes: int | None) -> ArrayDataset:
    """test_batch or data_batch_1 .. 5, also with ``.bin``, in DIR or in the folder that the archive unpacks to."""
    if split not in _BATCHES:
        raise unknown_split(source, split)
    for subfolder in _SUBFOLDERS:
        for suffix, read in (("", _read_python), (".bin", _read_binary)):
            files = [root / subfolder / f"{name}{suffix}" for name in _BATCHES[split]]
            if files[0].is_file():
                batches = [_read(file, read) for file in files]
                pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
                # Stored channel by channel.
                images = pixels.reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1)
                return ArrayDataset(source, split, CLASS_NAMES, images, labels, shape, classes)
    raise DatasetError(
        f"{source} has no {_BATCHES[split][0]} or {_BATCHES[split][0]}.bin; "
        f"unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz into {root}"
    )


def _read(file: Path, read: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8[n, 3072] and labels int64[n] of one batch."""
    try:
        return read(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DatasetError(f"{file} is no CIFAR-10 batch ({error}); unpack the original archive again") from error


def _read_binary(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(data) % (1 + _PIXELS):
        raise ValueError(f"{len(data)} bytes are no whole records of {1 + _PIXELS}")
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_python(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _load(data)
    try:
        pixels, labels = batch[b"data"].to_numpy(), batch[b"labels"]
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError("no data and labels in it") from error
    if not isinstance(labels, list) or not all(isinstance(label, int) and abs(label) < 256 for label in labels):
        raise ValueError("its labels are no list of small integers")
    return pixels, np.array(labels, np.int64)


def _load(data: bytes) -> Any:
    """Unpickle without calling anything; ValueError where that is not possible."""
    try:
        return _DataUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle makes its virtual machine fail in any way
        raise ValueError(f"not a pickle of plain arrays: {error}") from error


class _StoredDtype:
    """Stands in for numpy.dtype; the first argument is its code."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields: bytes have neither."""


class _StoredArray:
    """Stands in for numpy.ndarray; its state is (version, shape, dtype, Fortran order, bytes)."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        """The array, if it is one of CIFAR-10's, uint8[n, 3072]."""
        _, shape, dtype, fortran_order, content = self.state
        if not isinstance(dtype, _StoredDtype) or dtype.code not in ("u1", b"u1") or fortran_order is not False:
            raise ValueError("its data are no bytes in C order")
        if shape != (shape[0], _PIXELS) or not isinstance(content, bytes) or len(content) != shape[0] * _PIXELS:
            raise ValueError(f"its data are not rows of {_PIXELS} bytes")
        return np.frombuffer(content, np.uint8).reshape(shape)


def _reconstruct(*_: Any) -> _StoredArray:
    """Stands in for numpy's function of this name, which makes an empty array to be filled by its state."""
    return _StoredArray()


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, by which Python 3 writes bytes in Python 2's pickle protocol."""
    return text.encode("latin-1")


class _DataUnpickler(pickle.Unpickler):
    """Knows the names that occur in CIFAR-10's batches and no other."""

    _STAND_INS = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _StoredArray,
        ("numpy", "dtype"): _StoredDtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Only stand-ins, whatever the pickle asks for."""
        if (module, name) not in self._STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch does")
        return self._STAND_INS[module, name]
