"""A compiled artifact on a board, over TVM's RPC. Nothing of ours is installed there: the library is sent along."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import numpy as np

from intcert.runtime.artifact import Artifact
from intcert.runtime.board_cpu import missing_flags
from intcert.runtime.errors import ArtifactError, DeviceLostError, WrongDeviceError
from intcert.runtime.keys import signed_key
from intcert.runtime.rpc_board import Board, last_line
from intcert.runtime.rpc_link import Link
from intcert.runtime.session import ROW, check_range, require_array, require_layers

_CALL_SECONDS = 2.0  # of one call of ``counts``: far below any patience, far above the time of a packet


class BoardCrashedError(DeviceLostError):
    """A board that died at the first instructions of the library, most likely for lack of one of them."""


class RemoteSession:
    """A compiled artifact on a board, which works with one core: a board with several runs a server for each.

    A context manager. Attributes as in ``Session``, and artifact; device names the board.
    """

    def __init__(self, artifact: Artifact, link: Link, name: str) -> None:
        """Send the library, load it there and draw one sample, which every board that works survives.

        link: a fresh connection, which the session closes; name: the board's, for messages and the ledger.

        Raises:
            WrongDeviceError: the board's processor lacks instructions that the library needs.
            ArtifactError: the library does not load there.
            BoardCrashedError, DeviceLostError: the board died, or does not answer.
        """
        manifest = artifact.manifest
        self.artifact = artifact
        self.input_shape, self.classes = manifest.input_shape, manifest.classes
        self.sigma, self.graph_hash, self.noise_hash = manifest.sigma, manifest.graph_hash, manifest.noise_hash
        self.target, self.device = manifest.target, name
        self._rows_a_call = 1
        self._board = Board(link, name)
        try:
            self._load()
            self._draw_one()
        except BaseException:
            self.close()
            raise

    def counts(self, x: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
        """See ``Session.counts``.

        Raises:
            ValueError: as ``LocalSession.counts``.
            DeviceLostError: the board died, or does not answer.
        """
        require_array(x, np.uint8, self.input_shape)
        check_range(key, first, n)
        rows = np.empty((-(-n // ROW), self.classes), np.int32)
        begin = 0
        while begin < len(rows):
            end = min(begin + self._rows_a_call, len(rows))
            samples = min(end * ROW, n) - begin * ROW
            out = np.zeros((end - begin, self.classes), np.int32)
            started = time.perf_counter()
            rows[begin:end] = self._run("counts", x, signed_key(key), first + begin * ROW, samples, out)
            # A board that owes an answer for long is taken for dead, so no call may take long.
            affordable = (end - begin) * _CALL_SECONDS / max(time.perf_counter() - started, 1e-6)
            self._rows_a_call = max(1, min(int(affordable), 4 * self._rows_a_call))
            begin = end
        return rows

    def logits(self, x: np.ndarray) -> np.ndarray:
        """See ``Session.logits``.

        Raises:
            ValueError: x is not int16[n, H, W, C] with n > 0.
            DeviceLostError: the board died, or does not answer.
        """
        require_array(x, np.int16, (len(x) if np.ndim(x) else 0, *self.input_shape))
        if len(x) == 0:
            raise ValueError("a batch of 0 images has no logits")
        parts = (x[begin : begin + ROW] for begin in range(0, len(x), ROW))
        return np.concatenate(
            [self._run("logits", part, np.zeros((len(part), self.classes), np.int32)) for part in parts]
        )

    def layers(self, arena: np.ndarray, begin: int, end: int) -> np.ndarray:
        """As ``LocalSession.layers``. Raises ValueError or DeviceLostError."""
        require_array(arena, np.uint8, (self.artifact.manifest.arena_bytes,))
        require_layers(self.artifact.manifest, begin, end)
        return self._run("layers", begin, end, arena)

    def layer_seconds(self, begin: int, end: int, rounds: int) -> list[float]:
        """As ``LocalSession.layer_seconds``, by the board's own clock. Raises ValueError or DeviceLostError."""
        require_layers(self.artifact.manifest, begin, end)
        with self._board.answers():
            self._store("layers", begin, end, np.zeros(self.artifact.manifest.arena_bytes, np.uint8))
            timer = self._machine.time_evaluator(
                "invoke_stateful", self._board.cpu, number=1, repeat=rounds, min_repeat_ms=1
            )
            return list(timer("layers").results)

    def close(self) -> None:
        """Leave the board to others; a second call does nothing."""
        self._board.close()
        self._machine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self) -> None:
        from tvm.error import RPCError
        from tvm.runtime.vm import VirtualMachine

        self._check_processor()
        with self._board.answers():
            try:
                self._machine: Any = VirtualMachine(self._board.load(self.artifact.library), self._board.cpu).module
            except RPCError as error:
                version = self.artifact.manifest.tvm_version
                raise ArtifactError(
                    f"{self.artifact.path} does not load on board {self.device} ({last_line(error)}); compile the "
                    f"model with the board's --target, and install apache-tvm {version} there"
                ) from None

    def _check_processor(self) -> None:
        missing = missing_flags(self.artifact.manifest.cpu_flags, self.artifact.library, self._board.processor())
        if missing:
            raise WrongDeviceError(
                f"{self.artifact.path} is for {self.target} and needs {', '.join(missing)}, which board {self.device} "
                "lacks; compile the model with the board's --target"
            )

    def _draw_one(self) -> None:
        try:
            self._run("counts", np.zeros(self.input_shape, np.uint8), 0, 0, 1, np.zeros((1, self.classes), np.int32))
        except DeviceLostError as error:
            flags = ", ".join(self.artifact.manifest.cpu_flags) or "the instructions of that target"
            raise BoardCrashedError(
                f"{error} at the first sample; if its processor lacks {flags}, compile the model with another "
                f"--target than {self.target}, and restart tvm.exec.rpc_server there"
            ) from None

    def _run(self, function: str, *arguments: Any) -> np.ndarray:
        """Call an entry point of the library and wait for its result."""
        with self._board.answers():
            self._store(function, *arguments)
            self._machine["invoke_stateful"](function)
            return self._machine["get_output"](function).numpy()

    def _store(self, function: str, *arguments: Any) -> None:
        """Give an entry point its arguments.

        Over RPC a function cannot return a tensor that it was given, as ours do; a stored call can.
        """
        sent = [self._board.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        self._machine["set_input"](function, *sent)
