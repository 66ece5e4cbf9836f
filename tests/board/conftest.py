"""TVM's own RPC servers and trackers, on loopback, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from intcert.compile.build import compile_artifact
from intcert.runtime.artifact import Artifact, read_artifact
from intcert.runtime.rpc_link import Address


@pytest.fixture(scope="session", autouse=True)
def rpc_packages() -> None:
    """What TVM's server and tracker need."""
    for package in ("cloudpickle", "psutil", "tornado"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'intcert[rpc]'")


def unused_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    return unused_port()


class Service:
    """A server or tracker that can be killed and started again on its port."""

    def __init__(self, module: str, folder: Path, *words: str, python: tuple[str, ...] = (sys.executable,)) -> None:
        """module: of tvm.exec; words: further arguments; folder: for its output; python: the command."""
        self.address = Address("127.0.0.1", unused_port())
        ports = ("--host", "127.0.0.1", "--port", str(self.address.port), "--port-end", str(self.address.port + 1))
        self._command = (*python, "-m", f"tvm.exec.{module}", *ports, *words)
        self._output = folder / f"{module}-{self.address.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it, without waiting until it listens."""
        # Without its compiler, TVM is what boards have, and starts in half the time.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TVM_USE_RUNTIME_LIB": "1"}
        with self._output.open("wb") as output:
            # A group of its own: TVM starts workers, which outlive a killed parent.
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, env=environment, start_new_session=True
            )

    def start(self) -> Service:
        """Start it, and wait until it listens. Connecting to find out would cost it its registration."""
        self.begin()
        self.wait()
        return self

    def wait(self) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + 60
        while b"bind to" not in self._output.read_bytes():
            assert self._process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    @property
    def output(self) -> str:
        """What it printed since it was started."""
        return self._output.read_text()

    def crash_session(self) -> None:
        """Kill the process of the session that it serves, as an illegal instruction would."""
        import psutil

        (worker,) = psutil.Process(self._process.pid).children()
        (session,) = worker.children()
        session.send_signal(signal.SIGILL)

    def freeze(self) -> None:
        """Stop all its processes without ending them: a board that lost its network."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


Start = Callable[..., Service]


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Start]:
    """Starts services, and kills them in the end."""
    started: list[Service] = []

    def start(module: str, *words: str, **how: tuple[str, ...]) -> Service:
        started.append(Service(module, folder, *words, **how))
        return started[-1].start()

    try:
        yield start
    finally:
        for service in started:
            service.kill()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Start]:
    """Starts a service for one test: ``service("rpc_server", "--key", "rasp4")``."""
    with services(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server for all tests that leave it alive."""
    with services(tmp_path_factory.mktemp("server")) as start:
        yield start("rpc_server")


@pytest.fixture(scope="session")
def artifact(colour_artifact: Path) -> Artifact:
    """The colour classifier, compiled for this machine."""
    return read_artifact(colour_artifact)


@pytest.fixture(scope="session")
def slow_artifact(colour_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for any x86 processor, one sample at a time."""
    path = tmp_path_factory.mktemp("artifact") / "slow.intcert"
    compile_artifact(colour_model, path, target="x86", chunk=1)
    return path
