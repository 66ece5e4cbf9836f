"""Noise keys: one secret run key, from which the key of every image follows (docs/noise.md).

The guarantee needs noise that the adversary cannot know when choosing the image, so a run key comes from the system's
entropy and is written to nothing but the run settings beside the ledger. ``--seed`` exists to repeat a run.
"""

import re
import secrets

from intcert.runtime.errors import CertificateError
from intcert.runtime.philox import image_key

__all__ = ["KEY_LIMIT", "format_key", "image_key", "new_run_key", "parse_key", "parse_seed", "signed_key"]

KEY_LIMIT = 1 << 64

_SEED = re.compile(r"[0-9]{1,20}", re.ASCII)
_KEY = re.compile(r"[0-9a-f]{16}", re.ASCII)


def new_run_key() -> int:
    """A fresh 64-bit run key from the operating system's entropy."""
    return secrets.randbits(64)


def parse_seed(text: str) -> int:
    """The run key that a user's seed names.

    Raises:
        CertificateError: not a plain decimal integer in 0 .. 2^64 - 1.
    """
    if _SEED.fullmatch(text) is None or int(text) >= KEY_LIMIT:
        raise CertificateError(f"seed {text!r} is not an integer in 0..{KEY_LIMIT - 1}; give one, or leave --seed out")
    return int(text)


def format_key(key: int) -> str:
    """A 64-bit key as 16 lower-case hexadecimal digits."""
    if not 0 <= key < KEY_LIMIT:
        raise ValueError(f"key {key} is outside 0 .. 2^64 - 1")
    return f"{key:016x}"


def parse_key(text: str) -> int:
    """The inverse of ``format_key``; ValueError for anything else."""
    if _KEY.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a key of 16 hexadecimal digits")
    return int(text, 16)


def signed_key(key: int) -> int:
    """The same 64 bits as a two's-complement int64, the form in which kernels take a key."""
    return key - KEY_LIMIT if key >= KEY_LIMIT >> 1 else key
