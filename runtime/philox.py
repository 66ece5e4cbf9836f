"""Philox 4x32-10, a counter-based random number generator (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers:
As Easy as 1, 2, 3", SC 2011), one block at a time on Python integers.

The kernels and the reference executor have vectorised versions of their own; this one derives keys and is the
yardstick that the others are tested against.
"""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# Second counter word. One key serves all three kinds of draw, so their counters must never meet.
DOMAIN_PRIMARY = 0
DOMAIN_ESCAPE = 1
DOMAIN_KEYS = 2

_MASK32 = 0xFFFFFFFF
_LIMIT64 = 1 << 64


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Encrypt one 128-bit ``counter`` under a 64-bit ``key``.

    Every word is an integer in [0, 2^32); the first counter and the first key word are the least significant.
    Returns four such words, each a function of the whole counter and the whole key.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0 = MULTIPLIERS[0] * c0
        product1 = MULTIPLIERS[1] * c2
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & _MASK32
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & _MASK32
        k0 = (k0 + KEY_INCREMENTS[0]) & _MASK32
        k1 = (k1 + KEY_INCREMENTS[1]) & _MASK32
    return c0, c1, c2, c3


def image_key(run_key: int, index: int) -> int:
    """The 64-bit noise key of image number ``index`` (its position in the whole data set) in a run under ``run_key``.

    Raises:
        ValueError: ``run_key`` or ``index`` is outside 0 .. 2^64 - 1.
    """
    for name, value in (("run key", run_key), ("image index", index)):
        if not 0 <= value < _LIMIT64:
            raise ValueError(f"{name} {value} is outside 0 .. 2^64 - 1")
    counter = (index & _MASK32, DOMAIN_KEYS, index >> 32, 0)
    w0, w1, _, _ = philox4x32(counter, (run_key & _MASK32, run_key >> 32))
    return w0 << 32 | w1
