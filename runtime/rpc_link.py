"""A connection to a stock TVM RPC server that can neither hang nor be mistaken for one.

TVM's client waits for ever: for a server that is busy, for one whose last session crashed, for a web server that does
not understand the question. It has no timeouts and keeps its socket to itself. So the handshake is done here, under a
deadline, and TVM's client then talks to a relay on loopback (rpc_relay.py), which knows whether an answer is owed and
drops a board that owes it for too long.

The protocol has no authentication and no encryption: whoever reaches the port of a server runs code on it.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from intcert.runtime import rpc_relay
from intcert.runtime.errors import DeviceLostError, IntcertError
from intcert.runtime.rpc_relay import receive

if TYPE_CHECKING:
    from tvm.rpc import RPCSession

_NAME_LIMIT = 1 << 10  # bytes of a server's name

_ending: list[subprocess.Popen[bytes]] = []  # relays that were told to end, kept until they have


class AddressError(IntcertError):
    """Text that is no HOST:PORT."""


@dataclass(frozen=True, order=True)
class Address:
    """Where a server or tracker listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read HOST:PORT; an IPv6 address stands in brackets.

        Raises:
            AddressError: it is anything else.
        """
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        named = bool(bare) and (bare != host or ":" not in host)
        if not named or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
            raise AddressError(f"{text!r} is no address; give HOST:PORT, like 127.0.0.1:9090")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def connect_socket(address: Address, seconds: float, what: str) -> socket.socket:
    """An open TCP connection; ``what`` is listening there, in words.

    Raises:
        DeviceLostError: none within ``seconds``.
    """
    try:
        return socket.create_connection((address.host, address.port), seconds)
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise DeviceLostError(f"{what} {address} cannot be reached ({reason}); start it, or give its address") from None


def greet(address: Address, key: str, seconds: float, session_seconds: float = 0) -> socket.socket:
    """Connect to an RPC server and do the handshake, within ``seconds``.

    key: the server's, or the one-time key from a tracker; session_seconds: after so long the server ends the session,
    whatever it does (0: never).

    Raises:
        DeviceLostError: no server answers there, it is busy or hangs, has another key, or is something else.
    """
    from tvm.rpc import base

    deadline = time.monotonic() + seconds
    sock = connect_socket(address, seconds, "board")
    words = f"client:{key}" + (f" -timeout={session_seconds}" if session_seconds else "")
    try:
        sock.sendall(struct.pack("<ii", base.RPC_MAGIC, len(words.encode())) + words.encode())
        (code,) = struct.unpack("<i", receive(sock, 4, deadline))
        if code == base.RPC_CODE_MISMATCH:
            raise DeviceLostError(
                f"board {address} has another key than {key!r}; give its --rpc-key, or its tracker if it has one"
            )
        if code != base.RPC_CODE_SUCCESS:
            raise ValueError
        (length,) = struct.unpack("<i", receive(sock, 4, deadline))
        if not 0 <= length <= _NAME_LIMIT or not receive(sock, length, deadline).startswith(b"server:"):
            raise ValueError
        sock.settimeout(None)
        # Small packets go back and forth; waiting to fill them costs 40 ms each.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise DeviceLostError(
                f"board {address} takes connections but has not answered for {seconds:g} s; it serves another client, "
                "or hangs since its last session crashed: restart tvm.exec.rpc_server there"
            ) from None
        if isinstance(error, OSError):
            raise DeviceLostError(
                f"board {address} closed the connection; look at the output of tvm.exec.rpc_server there"
            ) from None
        if isinstance(error, ValueError):
            raise DeviceLostError(f"{address} is no TVM RPC server; give the address of one") from None
        raise


class Link:
    """The way from TVM's client in this process to a board, through a relay in a process of its own.

    A thread would not do: where TVM frees a remote object it waits for the board and holds Python's lock. And a process
    survives this one when it is killed, to take the answer that the board is about to send.
    """

    def __init__(self, board: socket.socket, address: Address, patience: float) -> None:
        """board: a socket after ``greet``, which the link now owns; patience: seconds that an answer may take."""
        self.address = address
        self._reason: str | None = None
        self._secret = secrets.token_hex(16)
        with board, socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
            self._port = listener.getsockname()[1]
            fds = (board.fileno(), listener.fileno())
            self._relay = subprocess.Popen(
                # Isolated: it needs nothing but the standard library, and starts in a few milliseconds.
                [sys.executable, "-I", "-S", rpc_relay.__file__, *map(str, fds), str(patience)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=fds,
                # Ctrl-C in a terminal is for this process, which then ends its relays.
                start_new_session=True,
            )
        # Not on its command line, which every user of this machine can read.
        self._relay.stdin.write(f"{self._secret}\n".encode())
        self._relay.stdin.flush()

    @property
    def broken(self) -> str | None:
        """Why the connection is lost, in words; None while it is not."""
        if self._reason is None:
            # It says why and then closes the sockets, so whoever saw them closed is a moment early at most.
            with contextlib.suppress(ValueError):  # another thread cuts
                if select.select([self._relay.stdout], [], [], 1.0)[0]:
                    self._reason = self._relay.stdout.read().decode() or "lost its relay process"
        return self._reason

    def session(self) -> RPCSession:
        """TVM's view of the connection; to be called once. Raises tvm.error.InternalError, see ``broken``."""
        from tvm import rpc

        return rpc.connect("127.0.0.1", self._port, self._secret)

    def cut(self, reason: str) -> None:
        """Drop the connection at once, from any thread: a call that waits on it fails. Does nothing a second time."""
        self._reason = self._reason or reason
        for pipe in (self._relay.stdin, self._relay.stdout):
            pipe.close()
        # The relay may stay for an answer that it takes in vain, so nobody waits for its end.
        _ending[:] = [relay for relay in (*_ending, self._relay) if relay.poll() is None]
