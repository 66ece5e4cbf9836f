"""Where boards come from: servers named one by one, or a tracker that lends out those of a key."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from intcert.runtime.artifact import Artifact
from intcert.runtime.errors import DeviceLostError
from intcert.runtime.remote import BoardCrashedError, RemoteSession
from intcert.runtime.rpc_link import Address, Link, connect_socket, greet
from intcert.runtime.rpc_relay import receive

Used = TypeVar("Used")

_ANSWER_SECONDS = 10.0  # for a handshake, or an answer of the tracker
_PAUSE_SECONDS = 0.5  # between attempts
_MESSAGE_LIMIT = 1 << 20  # bytes from a tracker, which holds itself to the same


@dataclass(frozen=True)
class Patience:
    """How long to wait for boards, in seconds.

    answer: for the answer to one call, after which a board is lost; board: for a board to be free, or to come back;
    session: after which the server ends a session whatever it does, 0 for never.
    """

    answer: float = 60.0
    board: float = 30.0
    session: float = 0.0


class BoardSource(Protocol):
    """Gives connections to boards. Used by several threads."""

    def count(self, wanted: int | None) -> int:
        """How many boards to use at once: as many as wanted and possible, or all that are free now; at least 1.

        Raises DeviceLostError.
        """
        ...

    def connect(self, patience: Patience, deadline: float, stop: threading.Event) -> tuple[socket.socket, Address, str]:
        """A board that answered, its address and its name. deadline: as ``time.monotonic``.

        Raises:
            DeviceLostError: none until the deadline, or at once where waiting needs another attempt.
        """
        ...

    def release(self, address: Address) -> None:
        """Take back a board that ``connect`` gave."""
        ...


class Servers:
    """Servers that run without a tracker, each for one client at a time."""

    def __init__(self, addresses: Sequence[Address], key: str = "") -> None:
        """key: the one that the servers were started with."""
        self._key = key
        self._all = len(addresses)
        self._free = deque(addresses)

    def count(self, wanted: int | None) -> int:
        return min(wanted or self._all, self._all)

    def connect(self, patience: Patience, deadline: float, stop: threading.Event) -> tuple[socket.socket, Address, str]:
        try:
            address = self._free.popleft()
        except IndexError:
            raise DeviceLostError("every --rpc-server is in use by this process; name more, or wait") from None
        try:
            seconds = min(_ANSWER_SECONDS, max(deadline - time.monotonic(), 1.0))
            return greet(address, self._key, seconds, patience.session), address, str(address)
        except BaseException:
            self._free.append(address)
            raise

    def release(self, address: Address) -> None:
        self._free.append(address)


class Tracker:
    """A tracker (tvm.exec.rpc_tracker) and the boards that registered there under a key."""

    def __init__(self, address: Address, key: str) -> None:
        self._address = address
        self._key = key

    def count(self, wanted: int | None) -> int:
        return wanted or max(1, self._free())

    def connect(self, patience: Patience, deadline: float, stop: threading.Event) -> tuple[socket.socket, Address, str]:
        from tvm.rpc.base import TrackerCode

        with self._open() as sock:
            _send(sock, [TrackerCode.REQUEST, self._key, "", 1])
            while not select.select([sock], [], [], _PAUSE_SECONDS)[0]:
                if stop.is_set() or time.monotonic() > deadline:
                    raise DeviceLostError(self._none_free(patience))
            code, granted = self._reply(sock)
            try:
                host, port, key = granted
                address = Address(str(host), int(port))
            except (TypeError, ValueError):
                code = TrackerCode.FAIL
            if code != TrackerCode.SUCCESS:
                raise self._not_a_tracker()
        # From here on the tracker is not needed until this board is lost.
        seconds = min(_ANSWER_SECONDS, max(deadline - time.monotonic(), 1.0))
        return greet(address, str(key), seconds, patience.session), address, f"{address} ({self._key})"

    def release(self, address: Address) -> None:
        """Nothing: a board registers again by itself."""

    def _open(self) -> socket.socket:
        from tvm.rpc.base import RPC_TRACKER_MAGIC

        sock = connect_socket(self._address, _ANSWER_SECONDS, "tracker")
        try:
            sock.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
            (magic,) = struct.unpack("<i", receive(sock, 4, time.monotonic() + _ANSWER_SECONDS))
        except OSError as error:
            sock.close()
            raise self._silent(error) from None
        if magic != RPC_TRACKER_MAGIC:
            sock.close()
            raise self._not_a_tracker()
        return sock

    def _reply(self, sock: socket.socket) -> tuple[Any, Any]:
        """Code and value of the tracker's answer."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        try:
            (size,) = struct.unpack("<i", receive(sock, 4, deadline))
            if not 0 <= size <= _MESSAGE_LIMIT:
                raise ValueError
            code, value = json.loads(receive(sock, size, deadline))
        except OSError as error:
            raise self._silent(error) from None
        except (ValueError, TypeError):
            raise self._not_a_tracker() from None
        return code, value

    def _free(self) -> int:
        """How many boards of the key are free."""
        from tvm.rpc.base import TrackerCode

        with self._open() as sock:
            _send(sock, [TrackerCode.SUMMARY])
            _, summary = self._reply(sock)
        try:
            return int(summary["queue_info"].get(self._key, {"free": 0})["free"])
        except (TypeError, KeyError, AttributeError, ValueError):
            raise self._not_a_tracker() from None

    def _none_free(self, patience: Patience) -> str:
        return (
            f"no board of key {self._key!r} was free at tracker {self._address} within {patience.board:g} s; see "
            f"`python -m tvm.exec.query_rpc_tracker --host {self._address.host} --port {self._address.port}`, "
            "start one, or wait longer with --rpc-wait"
        )

    def _silent(self, error: OSError) -> DeviceLostError:
        what = "does not answer" if isinstance(error, TimeoutError) else "closed the connection"
        return DeviceLostError(f"tracker {self._address} {what}; restart tvm.exec.rpc_tracker there")

    def _not_a_tracker(self) -> DeviceLostError:
        return DeviceLostError(f"{self._address} is no TVM RPC tracker; give the address of one")


def open_board(
    artifact: Artifact,
    source: BoardSource,
    patience: Patience,
    *,
    stop: threading.Event | None = None,
    notify: Callable[[str], None] | None = None,
) -> BoardSession:
    """A session on the first board that can be had. See ``first_board``.

    Raises:
        WrongDeviceError, ArtifactError: the board cannot run this artifact.
        BoardCrashedError: the board died at the first sample.
        DeviceLostError: there is no board.
    """

    def use(link: Link, name: str, address: Address) -> BoardSession:
        return BoardSession(artifact, link, name, source, address, patience.session)

    return first_board(source, patience, use, stop=stop, notify=notify)


def first_board(
    source: BoardSource,
    patience: Patience,
    use: Callable[[Link, str, Address], Used],
    *,
    stop: threading.Event | None = None,
    notify: Callable[[str], None] | None = None,
) -> Used:
    """What ``use`` makes of the first board that can be had, tried until ``patience.board`` has passed.

    use: given the link, which it owns from then on, the name and the address, which it gives back to the source when
    it no longer needs the board; stop: ends the attempts early; notify: told once why there is none yet.

    Raises:
        DeviceLostError: there is no board.
        Exception: what ``use`` raises, but for losses other than a BoardCrashedError, after which another is tried.
    """
    import tvm.rpc  # noqa: F401  before the clock starts: it may take seconds

    stop = stop or threading.Event()
    deadline = time.monotonic() + patience.board
    told = False
    while True:
        try:
            sock, address, name = source.connect(patience, deadline, stop)
            try:
                return use(Link(sock, address, patience.answer), name, address)
            except BaseException:
                source.release(address)
                raise
        except BoardCrashedError:
            raise
        except DeviceLostError as error:
            if stop.is_set() or time.monotonic() + _PAUSE_SECONDS > deadline:
                raise
            if notify is not None and not told:
                notify(f"waiting up to {patience.board:g} s: {error}")
                told = True
        stop.wait(_PAUSE_SECONDS)


class BoardSession(RemoteSession):
    """A session that gives its board back to the source when it is closed."""

    def __init__(
        self, artifact: Artifact, link: Link, name: str, source: BoardSource, address: Address, seconds: float
    ) -> None:
        """As ``RemoteSession``. address: to give back to the source, which the caller does where this raises;
        seconds: the session's whole length, 0 for no limit.
        """
        self._lease: tuple[BoardSource, Address] | None = None
        self._opened, self._seconds = time.monotonic(), seconds
        super().__init__(artifact, link, name)
        self._lease = source, address

    @property
    def is_old(self) -> bool:
        """Whether the server may end the session before long."""
        return self._seconds > 0 and time.monotonic() - self._opened > self._seconds / 2

    def interrupt(self) -> None:
        """Make a call that waits for the board fail, from any thread."""
        self._board.interrupt()

    def close(self) -> None:
        super().close()
        if self._lease is not None:
            source, address = self._lease
            self._lease = None
            source.release(address)


def _send(sock: socket.socket, message: list[Any]) -> None:
    data = json.dumps(message).encode()
    sock.sendall(struct.pack("<i", len(data)) + data)
