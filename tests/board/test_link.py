"""Connections to boards: addresses, and peers that are no boards, or boards no more."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intcert.runtime.boards import Patience, Tracker, open_board
from intcert.runtime.boards import Servers as BoardServers
from intcert.runtime.errors import DeviceLostError
from intcert.runtime.rpc_link import Address, AddressError, Link, greet
from intcert.runtime.rpc_relay import RPC_MAGIC, Packets

Peer = Callable[[socket.socket], None]


@contextlib.contextmanager
def listening(peer: Peer) -> Iterator[Address]:
    """A listener on loopback that gives every connection to ``peer`` and then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection, contextlib.suppress(OSError):
                        connection.settimeout(20)
                        peer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def until_closed(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def web_server(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    until_closed(connection)


def noise(connection: socket.socket) -> None:
    connection.sendall(random.Random(0).randbytes(4096))
    until_closed(connection)


def drip(connection: socket.socket) -> None:
    for byte in struct.pack("<i", RPC_MAGIC) * 50:
        connection.sendall(bytes([byte]))
        time.sleep(0.2)


def close(connection: socket.socket) -> None:
    del connection


def hello_then(after: bytes) -> Peer:
    """A peer that passes the handshake and then sends ``after`` instead of an answer."""

    def peer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(struct.pack("<ii", RPC_MAGIC, 7) + b"server:")
        connection.recv(4096)
        connection.sendall(after)
        until_closed(connection)

    return peer


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9090", Address("127.0.0.1", 9090)), ("rasp4:1", Address("rasp4", 1)), ("[::1]:9", Address("::1", 9))],
)
def test_addresses(text, address):
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "9090", ":9090", "host", "host:", "host:0", "host:65536", "host:1x", "::1:9"])
def test_text_that_is_no_address(text):
    with pytest.raises(AddressError, match="HOST:PORT"):
        Address.parse(text)


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_packets_are_found_however_the_stream_is_cut(packets, data):
    packets = [packet for packet in packets if packet]
    stream = b"".join(struct.pack("<Q", len(packet)) + packet for packet in packets)
    ends = {0}
    for packet in packets:
        ends.add(max(ends) + 8 + len(packet))
    cuts = sorted([*data.draw(st.lists(st.integers(0, len(stream)), max_size=8)), 0, len(stream)])
    counter = Packets()
    for begin, end in itertools.pairwise(cuts):
        assert counter.feed(stream[begin:end]) == (end in ends)


def test_a_packet_too_long_to_be_one():
    with pytest.raises(ValueError, match="packet"):
        Packets().feed(struct.pack("<Q", 1 << 40))


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (until_closed, "has not answered for 1 s"),
        (drip, "has not answered for 1 s"),
        (web_server, "no TVM RPC server"),
        (noise, "no TVM RPC server"),
        (close, "closed the connection"),
    ],
)
def test_an_unrelated_peer_is_an_error_within_the_timeout(peer, words):
    with listening(peer) as address:
        begin = time.monotonic()
        with pytest.raises(DeviceLostError, match=words) as caught:
            greet(address, "", 1.0)
        assert time.monotonic() - begin < 5
        assert str(address) in str(caught.value)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (b"", "has not answered for 1 s"),
        (struct.pack("<Q", 1 << 50), "sent what is no RPC answer"),
        (struct.pack("<Q", 100) + b"half", "has not answered for 1 s"),
        (struct.pack("<Q", 8) + bytes(8), "does not understand"),
    ],
)
def test_a_peer_that_passes_the_handshake_only(artifact, after, words):
    with listening(hello_then(after)) as address:
        begin = time.monotonic()
        with pytest.raises(DeviceLostError, match=words):
            open_board(artifact, BoardServers([address]), Patience(answer=1, board=0))
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize("seed", range(20))
def test_random_answers_after_the_handshake_end_in_an_error(artifact, seed):
    generator = random.Random(seed)
    body = generator.randbytes(generator.randrange(1, 200))
    framed = struct.pack("<Q", len(body)) + body
    with listening(hello_then(framed)) as address, pytest.raises(Exception, match=r".") as caught:
        open_board(artifact, BoardServers([address]), Patience(answer=0.5, board=0))
    assert isinstance(caught.value, DeviceLostError), repr(caught.value)


@pytest.mark.parametrize("peer", [until_closed, web_server, noise, close])
def test_a_tracker_that_is_none(artifact, peer, monkeypatch):
    monkeypatch.setattr("intcert.runtime.boards._ANSWER_SECONDS", 1.0)
    with listening(peer) as address, pytest.raises(DeviceLostError, match=r"tracker"):
        open_board(artifact, Tracker(address, "rasp4"), Patience(board=0))


def test_nobody_there():
    with pytest.raises(DeviceLostError, match="cannot be reached"):
        greet(Address("127.0.0.1", 1), "", 1.0)


def test_another_key(server):
    with pytest.raises(DeviceLostError, match="another key than 'rasp4'"):
        greet(server.address, "rasp4", 10.0)


def test_another_user_of_this_machine_cannot_take_the_connection(server):
    """Whoever connects to the relay without the secret is turned away, and the session goes on."""
    link = Link(greet(server.address, "", 10.0), server.address, 10.0)
    with socket.create_connection(("127.0.0.1", link._port)) as intruder:
        key = b"client:" + b"0" * 32
        intruder.sendall(struct.pack("<ii", RPC_MAGIC, len(key)) + key)
        assert intruder.recv(1) == b""
    assert link.session().get_function("tvm.rpc.server.download") is not None
    link.cut("done")
    assert link.broken == "done"
