"""A stock TVM RPC server at the other end of a link: what is sent there and loaded, and what a failure means."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from intcert.runtime.board_cpu import CPU_FILE, MODEL_FILE, describe
from intcert.runtime.errors import DeviceLostError, WrongDeviceError
from intcert.runtime.rpc_link import Link

if TYPE_CHECKING:
    from tvm.runtime import Device, Module, Tensor


class Board:
    """A connection that loads libraries and moves arrays. name: of the board, for messages."""

    def __init__(self, link: Link, name: str) -> None:
        """link: a fresh connection, which the board closes. Raises DeviceLostError."""
        self.name = name
        self._link = link
        try:
            with self.answers():
                self._tvm: Any = link.session()
        except BaseException:
            self.close()
            raise

    @property
    def cpu(self) -> Device:
        """Where arrays live on it. Raises ValueError where the board is closed."""
        return self._open.cpu()

    def tensor(self, array: np.ndarray) -> Tensor:
        """An array's copy on the board; to be called inside ``answers``."""
        import tvm

        return tvm.runtime.tensor(array, self.cpu)

    def load(self, library: bytes) -> Module:
        """Send a shared library and load it; inside ``answers``. Raises tvm.error.RPCError where it does not load."""
        # dlopen knows a library by its path and never reads one path twice, so each content has a name of its own.
        name = f"{hashlib.sha256(library).hexdigest()}.so"
        self._open.upload(bytearray(library), name)
        return self._open.load_module(name)

    def processor(self) -> bytes:
        """What Linux says of its processor's features (``board_cpu.CPU_FILE``), empty where it says nothing."""
        return self._file(CPU_FILE)

    def description(self) -> str:
        """Its kind in words, for the record: the model where a device tree names one, else the processor."""
        return describe(self._file(MODEL_FILE), self._file(CPU_FILE)) or self.name

    def interrupt(self) -> None:
        """Make a call that waits for the board fail, from any thread."""
        self._link.cut("was interrupted")

    def close(self) -> None:
        """Leave the board to others; a second call does nothing."""
        self._link.cut("was closed by this side")
        # After the cut: freeing remote objects asks the board, which may not answer.
        self._tvm = None

    @property
    def _open(self) -> Any:
        if self._tvm is None:
            raise ValueError("the session is closed")
        return self._tvm

    def _file(self, path: str) -> bytes:
        from tvm.error import RPCError

        with self.answers():
            try:
                return bytes(self._open.download(path))
            except RPCError:
                return b""

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Tell a lost board (DeviceLostError) from one that refuses (WrongDeviceError), and both from our defects."""
        from tvm.error import InternalError, RPCError

        try:
            yield
        except RPCError as error:
            reason = last_line(error)
            if "RPCSessionTimeoutError" in reason:
                raise DeviceLostError(f"board {self.name} ended the session, whose time was over") from None
            raise WrongDeviceError(f"board {self.name}: {reason}") from None
        except (InternalError, RuntimeError):
            if self._link.broken is None:
                raise
            raise DeviceLostError(f"board {self.name} {self._link.broken}") from None


def last_line(error: Exception) -> str:
    """What TVM's errors say, without the trace before it."""
    return str(error).strip().splitlines()[-1]
