"""A peer in a warm process of its own, pinned to its cores: what libraries settle when they load stays with them."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clock import clock
from peer_models import ModelFiles
from peer_networks import Peer

from intcert.runtime.benchmark import peak_memory

TRIAL_SECONDS = 0.2

_peer: Peer  # of the process that _start ran in


@dataclass
class PeerProcess:
    """Commands to a peer's process. cores: numbers of the cores it may use."""

    peer: Peer
    files: ModelFiles
    cores: frozenset[int]
    batch: int = 0
    _pool: ProcessPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pool = _fresh_process()

    def prepare(self, batch: int | None) -> None:
        """Load the network, and choose the fastest of the peer's batch sizes unless one of them is given."""
        log = self.files.path(f"{self.peer.name}.log")
        self._pool.submit(_start, self.peer, self.files, self.cores, log).result()
        candidates = self.peer.batches(self.files.side, len(self.cores))
        self.batch = self._pool.submit(_choose, (batch,) if batch in candidates else candidates).result()

    def images_per_second(self, seconds: float) -> float:
        """The rate over at least so many seconds, by ``clock``."""
        return self._pool.submit(_rate, self.batch, seconds).result()

    def record(self) -> tuple[dict[str, Any], int | None]:
        """The peer's settings, and the most memory that its process had, in bytes."""
        return self._pool.submit(_record).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)


def build(files: ModelFiles, form: str) -> None:
    """Write a form in a process that ends afterwards: what that takes is not the peer's."""
    with _fresh_process() as pool:
        pool.submit(_build, files, form, files.path(f"{form}.log")).result()


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def _fresh_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _redirect(log: Path) -> None:
    """Libraries' chatter goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _build(files: ModelFiles, form: str, log: Path) -> None:
    _redirect(log)
    files.build(form)


def _start(peer: Peer, files: ModelFiles, cores: frozenset[int], log: Path) -> None:
    global _peer
    _redirect(log)
    os.sched_setaffinity(0, cores)
    peer.prepare(files, len(cores))
    _peer = peer


def _choose(batches: tuple[int, ...]) -> int:
    for batch in batches:
        _peer.run(batch)  # the first run of a shape prepares its kernels
    return max(batches, key=lambda batch: _rate(batch, TRIAL_SECONDS)) if len(batches) > 1 else batches[0]


def _rate(batch: int, seconds: float) -> float:
    now = clock(len(os.sched_getaffinity(0)))
    images, begin = 0, now()
    while (elapsed := now() - begin) < seconds:
        images += _peer.run(batch)
    return images / elapsed


def _record() -> tuple[dict[str, Any], int | None]:
    return _peer.settings(), peak_memory()
