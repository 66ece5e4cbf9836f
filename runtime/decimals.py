"""Exact decimal numbers as the user writes them: sigma, alpha and radii are fractions, never floats.

0.12 * 255 in floats is not 30.6; tables, counts and hashes must not depend on that.
"""

import re
from fractions import Fraction

_DECIMAL = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)", re.ASCII)
MAX_LENGTH = 40


def parse_decimal(text: str) -> Fraction | None:
    """The value of a plain non-negative decimal such as ``0.25``, ``.25`` or ``1``; None for anything else.

    No sign, exponent, blank or digit separator, and at most ``MAX_LENGTH`` characters.
    """
    if len(text) > MAX_LENGTH or _DECIMAL.fullmatch(text) is None:
        return None
    return Fraction(text)


def canonical_decimal(text: str) -> str:
    """The one spelling of a decimal that ``parse_decimal`` accepts: ``.250`` is ``0.25`` and ``1.0`` is ``1``.

    One zero before a leading point, no other leading zero, no trailing zero after the point, no trailing point.
    """
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
