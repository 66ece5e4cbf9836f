"""Philox 4x32-10 against the known-answer vectors of the Random123 distribution, and the keys made from it."""

import pytest

from intcert.runtime.philox import DOMAIN_KEYS, image_key, philox4x32

ONES = 0xFFFFFFFF

# Random123, tests/kat_vectors, lines "philox4x32 10".
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    assert philox4x32(counter, key) == expected


def test_image_key_layout():
    run_key, index = 0x0123456789ABCDEF, 0x1122334455667788
    w0, w1, _, _ = philox4x32((0x55667788, DOMAIN_KEYS, 0x11223344, 0), (0x89ABCDEF, 0x01234567))
    assert image_key(run_key, index) == (w0 << 32) | w1


def test_image_keys_are_fixed_forever():
    assert [image_key(0, 0), image_key(1, 0), image_key(0, 1), image_key(2**64 - 1, 2**64 - 1)] == [
        0x58FE6CD3067FEBBC,
        0xE635DBEC1612383F,
        0xC5723FD13E276DA2,
        0xD894D83CDEEA95AB,
    ]


def test_image_keys_of_a_run_differ():
    assert len({image_key(7, index) for index in range(10_000)}) == 10_000


@pytest.mark.parametrize(("run_key", "index"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**64)])
def test_image_key_refuses_what_is_not_64_bits(run_key, index):
    with pytest.raises(ValueError, match="outside 0"):
        image_key(run_key, index)
