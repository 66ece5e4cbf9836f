"""Servers, tracker and client killed at random moments: the ledger is that of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from intcert.runtime.ledger import equal_ledgers, read_ledger

IMAGES = 30
KILLS = {"server": 9, "tracker": 5, "client": 8}
CERTIFY = [sys.executable, "-c", "from intcert.cli.main import main; main()", "certify"]


@pytest.fixture
def images(tmp_path) -> Path:
    rng = np.random.default_rng(3)
    path = tmp_path / "images.npz"
    np.savez(path, images=rng.integers(0, 256, (IMAGES, 8, 8, 3), np.uint8), labels=rng.integers(0, 3, IMAGES))
    return path


class Client:
    """``intcert certify``, which is started again with --resume whenever it was killed. ledgers: of its runs."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self._words, self._folder = words, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.ledgers: list[Path] = []

    @property
    def output(self) -> str:
        return (self._folder / "client.log").read_text()

    def begin(self) -> None:
        """Begin a run, with a ledger of its own."""
        self.ledgers.append(self._folder / f"disturbed-{len(self.ledgers)}.tsv")
        self.start()

    def start(self) -> None:
        ledger = self.ledgers[-1]
        words = [*self._words, "-o", str(ledger), *(["--resume"] if ledger.exists() else [])]
        with (self._folder / "client.log").open("ab") as output:
            self._process = subprocess.Popen([*CERTIFY, *words], stdout=output, stderr=output)

    def working(self) -> bool:
        """Whether it has a connection to a board, which is a process of its own."""
        import psutil

        assert self.code() in (None, 0), self.output
        return self.ledgers[-1].exists() and (self.code() == 0 or bool(psutil.Process(self._process.pid).children()))

    def code(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.mark.slow
def test_the_ledger_of_a_run_under_kills_is_that_of_a_quiet_one(slow_artifact, images, service, tmp_path):
    generator = random.Random(5)
    quiet = tmp_path / "quiet.tsv"
    words = [str(slow_artifact), "--data", f"npz:{images}", "--n", "150000", "--seed", "7"]
    subprocess.run([*CERTIFY, *words, "-o", quiet], check=True, stdout=subprocess.DEVNULL)

    tracker = service("rpc_tracker")
    servers = [service("rpc_server", "--tracker", str(tracker.address), "--key", "chaos") for _ in range(2)]
    remote = ["--rpc-tracker", str(tracker.address), "--rpc-key", "chaos", "--boards", "2", "--rpc-wait", "300"]
    client = Client([*words, *remote], tmp_path)
    victims = [name for name, times in KILLS.items() for _ in range(times)]
    generator.shuffle(victims)
    client.begin()
    try:
        rows_at_kills = []
        while len(rows_at_kills) < len(victims):
            wait_until(client.working)
            time.sleep(generator.uniform(0.0, 1.0))
            if client.code() == 0:  # over before the last kill: another run takes the others
                client.begin()
                continue
            victim = victims[len(rows_at_kills)]
            rows_at_kills.append(len(read_ledger(client.ledgers[-1])))
            if victim == "client":
                client.kill()
                client.start()
            else:
                killed = tracker if victim == "tracker" else generator.choice(servers)
                killed.kill()
                killed.begin()
        wait_until(lambda: client.code() is not None)
        assert client.code() == 0, client.output
    finally:
        client.kill()
    assert len(victims) >= 20
    assert len(set(rows_at_kills)) > 3, "the kills came all at once"
    assert [row.idx for row in read_ledger(quiet)] == list(range(IMAGES))
    for ledger in client.ledgers:
        assert equal_ledgers(read_ledger(quiet), read_ledger(ledger))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, os.times()
        time.sleep(0.05)
