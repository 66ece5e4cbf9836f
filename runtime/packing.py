"""A byte layout for a small header and a few integer arrays, used both to store tables and to hash them.

One line of canonical JSON (sorted keys, no spaces, ASCII), then for each array one line ``dtype shape`` (NumPy's
little-endian dtype string, extents joined by ``x``) and its elements in C order. The same values give the same bytes on
every machine, and nothing in the bytes can execute.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_DTYPES = ("|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8")


def pack(header: dict[str, Any], arrays: Sequence[np.ndarray]) -> bytes:
    """Lay out ``header`` (JSON values) and ``arrays`` (integer dtypes, any shape)."""
    parts = [json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode(), b"\n"]
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        if little.dtype.str not in _DTYPES:
            raise TypeError(f"an array of {array.dtype} cannot be packed; only integer arrays can")
        extents = "x".join(str(extent) for extent in array.shape)
        parts += [f"{little.dtype.str} {extents}\n".encode(), little.tobytes()]
    return b"".join(parts)


def unpack(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The inverse of ``pack``; the arrays are read-only and native.

    Raises:
        ValueError: ``data`` is not complete output of ``pack``.
    """
    line, position = _line(data, 0)
    header = json.loads(line)
    if not isinstance(header, dict):
        raise ValueError(f"the header is {type(header).__name__}, not an object")
    arrays = []
    while position < len(data):
        line, position = _line(data, position)
        dtype, _, extents = line.partition(" ")
        if dtype not in _DTYPES or not all(extent.isdecimal() for extent in extents.split("x") if extents):
            raise ValueError(f"{line[:40]!r} is not an array's dtype and shape")
        shape = tuple(int(extent) for extent in extents.split("x") if extent)
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        if position + size > len(data):
            raise ValueError(f"an array of {size} bytes is cut short at byte {len(data)}")
        array = np.frombuffer(data, dtype, count, position).reshape(shape)
        array = array.astype(array.dtype.newbyteorder("="))
        array.flags.writeable = False
        arrays.append(array)
        position += size
    return header, arrays


def digest(header: dict[str, Any], arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 in hex of ``pack(header, arrays)``."""
    return hashlib.sha256(pack(header, arrays)).hexdigest()


def _line(data: bytes, start: int) -> tuple[str, int]:
    end = data.find(b"\n", start)
    if end < 0:
        raise ValueError(f"no line ends after byte {start}")
    return data[start:end].decode("ascii"), end + 1
