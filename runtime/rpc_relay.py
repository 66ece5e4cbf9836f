"""Copies bytes between TVM's RPC client and a board, until one of them ends or the board owes an answer for too long.

Run as a script by ``rpc_link.Link``, with two sockets that it inherits: ``rpc_relay.py BOARD LISTENER SECONDS``. The
first line on standard input is the secret that the client will show; the end of standard input ends the relay, and so
does the death of its parent. Prints why it ended, in words that follow on "board NAME".
"""

import contextlib
import hmac
import os
import select
import socket
import struct
import sys
import time

# Of TVM's protocol (tvm/rpc/base.py), which importing would take a second.
RPC_MAGIC = 0xFF271

_CHUNK = 1 << 16
_PACKET_LIMIT = 1 << 30  # bytes; no answer is longer: the largest holds the logits of a batch
_HELLO_SECONDS = 5.0


class Packets:
    """Counts through a stream of packets: 8 bytes with a length, and so many bytes."""

    def __init__(self) -> None:
        self._head, self._rest = b"", 0

    def feed(self, data: bytes) -> bool:
        """Whether the stream now stands between two packets. Raises ValueError where no packet can be so long."""
        position = 0
        while position < len(data):
            if self._rest:
                step = min(self._rest, len(data) - position)
                self._rest -= step
            else:
                step = min(8 - len(self._head), len(data) - position)
                self._head += data[position : position + step]
                if len(self._head) == 8:
                    (self._rest,) = struct.unpack("<Q", self._head)
                    self._head = b""
                    if self._rest > _PACKET_LIMIT:
                        raise ValueError(f"a packet of {self._rest} bytes")
            position += step
        return not self._head and not self._rest


def receive(sock: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly ``size`` bytes. deadline: as ``time.monotonic``. Raises TimeoutError, or ConnectionError at an end."""
    data = b""
    while len(data) < size:
        sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionResetError("closed the connection")
        data += part
        if time.monotonic() > deadline:  # also for a peer that sends a byte now and then
            raise TimeoutError
    return data


def accept(listener: socket.socket, secret: bytes) -> socket.socket:
    """The connection of the process that knows the secret, as another user's on this machine does not."""
    key = b"client:" + secret
    hello = struct.pack("<ii", RPC_MAGIC, len(key)) + key
    while True:
        client, _ = listener.accept()
        try:
            if hmac.compare_digest(receive(client, len(hello), time.monotonic() + _HELLO_SECONDS), hello):
                name = b"server:relay"
                client.sendall(struct.pack("<ii", RPC_MAGIC, len(name)) + name)
                return client
        except OSError:
            pass
        client.close()


class Relay:
    """Two sockets, and what is under way between them. Every packet of the client has one answer."""

    def __init__(self, client: socket.socket, board: socket.socket, patience: float) -> None:
        """patience: seconds that an answer may take."""
        self._client, self._board, self._patience = client, board, patience
        self._question, self._answer = Packets(), Packets()
        self._asked = True  # whether the client's last packet is complete
        self._owed_since: float | None = None
        for sock in (client, board):
            sock.settimeout(patience)
            # Small packets go back and forth; waiting to fill them costs 40 ms each.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, parent: int) -> str:
        """Copy both ways until one side ends, and say why. parent: a descriptor that can be read when it is gone."""
        while True:
            sources = [self._client, self._board, parent]
            try:
                ready, _, _ = select.select(sources, [], [], self._rest())
                if not ready:
                    raise TimeoutError
                if self._board in ready:
                    self._client.sendall(self._from_board())
                if self._client in ready:
                    data = self._client.recv(_CHUNK)
                    if not data:
                        return "sent an answer that TVM does not understand"
                    self._asked = self._question.feed(data)
                    self._owed_since = time.monotonic()
                    self._board.sendall(data)
                if parent in ready:
                    return "was closed by this side"
            except OSError as error:
                return self._failure(error)
            except ValueError:
                self._owed_since = None
                return "sent what is no RPC answer"

    def drain(self) -> None:
        """Take the answer that is owed although nobody wants it: a server that cannot send one never serves again."""
        with contextlib.suppress(OSError, ValueError):
            while self._owed_since is not None and self._asked:
                self._board.settimeout(max(self._rest(), 1e-3))
                self._from_board()

    def _rest(self) -> float | None:
        """Seconds until the answer is overdue; None where none is owed."""
        return None if self._owed_since is None else max(self._owed_since + self._patience - time.monotonic(), 0)

    def _from_board(self) -> bytes:
        data = self._board.recv(_CHUNK)
        if not data:
            raise ConnectionResetError
        self._owed_since = None if self._answer.feed(data) else time.monotonic()
        return data

    def _failure(self, error: OSError) -> str:
        if isinstance(error, TimeoutError):
            self._owed_since = None
            return f"has not answered for {self._patience:g} s"
        return "closed the connection"


def main() -> None:
    """Run the relay that the command line describes."""
    board, listener = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    secret = sys.stdin.buffer.readline().strip()
    with listener:
        client = accept(listener, secret)
    relay = Relay(client, board, float(sys.argv[3]))
    reason = relay.run(sys.stdin.fileno())
    # Before the client's socket closes, so that it can ask why; a parent that was killed cannot.
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), reason.encode())
    os.close(sys.stdout.fileno())
    client.close()
    relay.drain()


if __name__ == "__main__":
    main()
