"""Exact decimals and their canonical spelling."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intcert.runtime.decimals import MAX_LENGTH, canonical_decimal, parse_decimal

DIGITS = st.text("0123456789", max_size=12)


@pytest.mark.parametrize(
    ("text", "value", "canonical"),
    [
        ("0.25", Fraction(1, 4), "0.25"),
        ("0.250", Fraction(1, 4), "0.25"),
        (".25", Fraction(1, 4), "0.25"),
        ("00.25", Fraction(1, 4), "0.25"),
        ("1", Fraction(1), "1"),
        ("1.", Fraction(1), "1"),
        ("1.00", Fraction(1), "1"),
        ("10", Fraction(10), "10"),
        ("0", Fraction(0), "0"),
        ("0.12", Fraction(3, 25), "0.12"),
    ],
)
def test_spellings(text, value, canonical):
    assert parse_decimal(text) == value
    assert canonical_decimal(text) == canonical


@pytest.mark.parametrize(
    "text", ["", ".", "-1", "+1", "1e-3", "1_0", " 1", "1\n", "0x1", "1/4", "nan", "inf", "٣", "1" * (MAX_LENGTH + 1)]
)
def test_anything_else_is_no_decimal(text):
    assert parse_decimal(text) is None


@given(DIGITS, DIGITS)
def test_canonical_form_is_unique(whole, fraction):
    text = f"{whole}.{fraction}"
    value = parse_decimal(text)
    if whole or fraction:
        canonical = canonical_decimal(text)
        assert parse_decimal(canonical) == value
        assert canonical_decimal(canonical) == canonical
        assert canonical_decimal(f"0{whole}.{fraction}0") == canonical
    else:
        assert value is None
