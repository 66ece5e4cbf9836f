"""Where candidates are built, timed and run: in a process of its own, which may crash or hang."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol, Self

import numpy as np

from intcert.compile.tune.program import ENTRY, Program
from intcert.runtime.session import cpu_name, load_module

RUN_SECONDS = 1e-3  # a timed run lasts at least this long


class CandidateError(Exception):
    """A candidate that cannot be built or run; the message says why, in one line."""


class Device(Protocol):
    """What times kernels and runs them for a check: this machine, a board or a GPU. cpu: which, for the record."""

    cpu: str

    def measure(self, programs: Sequence[Program], rounds: int) -> np.ndarray:
        """Seconds of one run, float[programs, rounds]; each round times every program. Raises CandidateError."""
        ...

    def run(self, program: Program, memory: np.ndarray) -> np.ndarray:
        """The memory, uint8[n], after one run on it. Raises CandidateError."""
        ...


class Worker:
    """Another process that answers one call at a time; it is started anew after it died or took too long.

    timeout: seconds that a call may take. A context manager.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> Any:
        """function(*arguments) in the other process; both must be picklable. Raises CandidateError."""
        timeout = timeout or self._timeout
        if self._process is None:
            self._start()
        self._pipe.send((function, arguments))
        if not self._pipe.poll(timeout):
            self.close()
            raise CandidateError(f"no answer in {timeout:g} s")
        try:
            succeeded, value = self._pipe.recv()
        except EOFError:
            process = self._process
            process.join()
            self.close()
            raise CandidateError(f"the process died ({_exit_reason(process.exitcode)})") from None
        if not succeeded:
            raise CandidateError(value)
        return value

    def close(self) -> None:
        """End the process, whatever it does; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        # A fresh interpreter: a fork would inherit the threads' locks, but not the threads.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_START_SECONDS):
            self.close()
            raise RuntimeError("the process for candidates does not start")
        self._pipe.recv()


_START_SECONDS = 120


def _serve(pipe: Connection) -> None:
    """Answer calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who then ends this process
    pipe.send("ready")
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            answer = (False, f"{type(error).__name__}: {text.splitlines()[-1]}")
        pipe.send(answer)


def _exit_reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class LocalDevice:
    """This machine, through a worker. See ``Device``."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.cpu = cpu_name()

    def measure(self, programs: Sequence[Program], rounds: int) -> np.ndarray:
        return self._worker.call(_measure, list(programs), rounds)

    def run(self, program: Program, memory: np.ndarray) -> np.ndarray:
        return self._worker.call(_run, program.library, memory)


def load(library: bytes) -> Any:
    """The module of a program's library."""
    return load_module(library, hashlib.sha256(library).hexdigest())


def _run(library: bytes, memory: np.ndarray) -> np.ndarray:
    import tvm

    tensor = tvm.runtime.tensor(memory)
    load(library)[ENTRY](tensor, 1)
    return tensor.numpy()


def _measure(programs: list[Program], rounds: int) -> np.ndarray:
    """``Device.measure`` here, in CPU seconds of this thread, so that other work on the machine matters less."""
    import tvm

    def timer(function: Any, memory: Any, repeats: int) -> float:
        begin = time.thread_time()
        function(memory, repeats)
        return time.thread_time() - begin

    timers = [partial(timer, load(p.library)[ENTRY], tvm.runtime.tensor(p.memory)) for p in programs]
    return rounds_of(timers, rounds)


def rounds_of(timers: Sequence[Callable[[int], float]], rounds: int) -> np.ndarray:
    """Seconds of one run, float[timers, rounds], interleaved: each round takes all timers, in the other direction than
    the round before. A timer gives the seconds of so many runs."""
    repeats = []
    for seconds in timers:
        count, elapsed = 1, seconds(1)
        while elapsed < RUN_SECONDS:
            count *= 2
            elapsed = seconds(count)
        repeats.append(count)
    times = np.empty((len(timers), rounds))
    for turn in range(rounds):
        for number in list(range(len(timers)))[:: -1 if turn % 2 else 1]:
            times[number, turn] = timers[number](repeats[number]) / repeats[number]
    return times
