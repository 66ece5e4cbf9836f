"""Which seconds a benchmark counts."""

from __future__ import annotations

import time
from collections.abc import Callable


def clock(threads: int) -> Callable[[], float]:
    """CPU seconds of this process where one thread works, since other work on its core matters less in them; wall-clock
    seconds where several do."""
    return time.process_time if threads == 1 else time.perf_counter
