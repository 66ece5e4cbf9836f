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


def relay(client: socket.socket, board: socket.socket, parent: int, patience: float) -> str:
    """Copy both ways until one side ends, and say why. Every packet of the client has one answer.

    parent: file descriptor that can be read when the parent is gone.
    """
    answer, owed_since = Packets(), None
    for sock in (client, board):
        sock.settimeout(patience)
        # Small packets go back and forth; waiting to fill them costs 40 ms each.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        rest = None if owed_since is None else max(owed_since + patience - time.monotonic(), 0)
        ready, _, _ = select.select([client, board, parent], [], [], rest)
        try:
            if not ready:
                raise TimeoutError
            if board in ready:
                data = board.recv(_CHUNK)
                if not data:
                    return "closed the connection"
                owed_since = None if answer.feed(data) else time.monotonic()
                client.sendall(data)
            if client in ready:
                data = client.recv(_CHUNK)
                if not data:
                    return "sent an answer that TVM does not understand"
                board.sendall(data)
                owed_since = time.monotonic()
            if parent in ready:
                return "was closed by this side"
        except TimeoutError:
            return f"has not answered for {patience:g} s"
        except ValueError:
            return "sent what is no RPC answer"
        except OSError as error:
            return f"closed the connection ({error.strerror})"


def main() -> None:
    """Run the relay that the command line describes."""
    board, listener = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    secret = sys.stdin.buffer.readline().strip()
    with listener:
        client = accept(listener, secret)
    reason = relay(client, board, sys.stdin.fileno(), float(sys.argv[3]))
    # Before the sockets close, so that whoever sees them closed can ask why; a parent that was killed cannot.
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), reason.encode())


if __name__ == "__main__":
    main()
