"""The byte layout of tables: an exact example, round trips, and damaged input."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from intcert.runtime.packing import digest, pack, unpack

EXAMPLE = pack({"b": 1, "a": "x"}, [np.array([1, 2], dtype=">u2"), np.zeros((2, 1), dtype=np.uint8)])


def test_layout_to_the_byte():
    assert EXAMPLE == b'{"a":"x","b":1}\n<u2 2\n\x01\x00\x02\x00|u1 2x1\n\x00\x00'
    assert digest({"a": 1}, []) == hashlib.sha256(b'{"a":1}\n').hexdigest()


@given(
    st.lists(
        hnp.arrays(st.one_of(hnp.integer_dtypes(), hnp.unsigned_integer_dtypes()), hnp.array_shapes(min_side=0)),
        max_size=3,
    )
)
def test_round_trip(arrays):
    header, restored = unpack(pack({"n": len(arrays)}, arrays))
    assert header == {"n": len(arrays)}
    assert len(restored) == len(arrays)
    for before, after in zip(arrays, restored, strict=True):
        assert after.dtype == before.dtype.newbyteorder("=")
        assert np.array_equal(after, before)
        assert not after.flags.writeable


def test_slices_are_packed_in_c_order():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert pack({}, [array.T]) == pack({}, [np.ascontiguousarray(array.T)])


@pytest.mark.parametrize("dtype", [np.float64, bool, object])
def test_only_integers_are_packed(dtype):
    with pytest.raises(TypeError, match="integer arrays"):
        pack({}, [np.zeros(1, dtype=dtype)])


@pytest.mark.parametrize("length", [length for length in range(len(EXAMPLE)) if length not in (16, 26)])
def test_truncation_is_an_error(length):
    # At 16 and 26 bytes the header or one array ends; the reader of a table misses the arrays it expects.
    with pytest.raises(ValueError, match=r"cut short|no line ends"):
        unpack(EXAMPLE[:length])


@pytest.mark.parametrize(
    "data", [b"[1]\n", b"{}\n<f8 1\n12345678", b"{}\n<u2 -1\n", b"{}\n<u2 1y2\n", b"{\n", b"\xff\n", b""]
)
def test_foreign_bytes_are_an_error(data):
    with pytest.raises(ValueError):  # noqa: PT011 - json and codecs word theirs
        unpack(data)
