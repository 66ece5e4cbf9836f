"""A session on a board: the same bits as here, and a board that fails while it works."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from crashing import crash_on_call

from intcert.runtime.artifact import Artifact, read_artifact
from intcert.runtime.board_cpu import missing_flags
from intcert.runtime.boards import Patience, Servers, open_board
from intcert.runtime.errors import ArtifactError, DeviceLostError, WrongDeviceError
from intcert.runtime.remote import BoardCrashedError
from intcert.runtime.session import LocalSession, cpu_flags

FAST = Patience(answer=5.0, board=10.0)
X86 = b"cpu:type:x86,ven0000fam0006mod008F:feature:,0000,0125,0130,020B\n" + bytes(100)
ARM = b"cpu:type:aarch64:feature:,0000,0001,0003,0014\n"


@pytest.fixture
def session(artifact, server):
    with open_board(artifact, Servers([server.address]), FAST) as opened:
        yield opened


@pytest.fixture
def here(artifact):
    with LocalSession(artifact, 1) as opened:
        yield opened


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("key", "first", "n"), [(0, 0, 1), (2**64 - 1, 3, 64), (7, 2**63 - 2000, 1000), (1, 100, 20_000)]
)
def test_counts_are_those_of_this_machine(session, here, key, first, n):
    rows = session.counts(image(n), key, first, n)
    assert (rows.dtype, rows.shape) == (np.int32, (-(-n // 64), 3))
    np.testing.assert_array_equal(rows, here.counts(image(n), key, first, n))


@pytest.mark.parametrize("n", [1, 64, 100])
def test_logits_are_those_of_this_machine(session, here, n):
    x = np.random.default_rng(n).integers(-200, 400, (n, 8, 8, 3)).astype(np.int16)
    np.testing.assert_array_equal(session.logits(x), here.logits(x))


def test_layers_are_those_of_this_machine(session, here):
    arena = np.random.default_rng(0).integers(0, 256, session.artifact.manifest.arena_bytes, np.uint8)
    last = len(session.artifact.manifest.layers)
    np.testing.assert_array_equal(session.layers(arena, 0, last), here.layers(arena, 0, last))


def test_it_describes_itself_as_the_local_session_does(session, here, server):
    for name in ("input_shape", "classes", "sigma", "graph_hash", "noise_hash", "target"):
        assert getattr(session, name) == getattr(here, name)
    assert session.device == str(server.address)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.counts(image(0)[:4], 0, 0, 1),
        lambda s: s.counts(image(0), 1 << 64, 0, 1),
        lambda s: s.counts(image(0), 0, -1, 1),
        lambda s: s.counts(image(0), 0, 0, 0),
        lambda s: s.logits(np.zeros((0, 8, 8, 3), np.int16)),
        lambda s: s.logits(image(0)),
        lambda s: s.layers(np.zeros(3, np.uint8), 0, 1),
        lambda s: s.layers(np.zeros(s.artifact.manifest.arena_bytes, np.uint8), 0, 99),
    ],
)
def test_arguments_that_do_not_fit_never_reach_the_board(session, call):
    with pytest.raises(ValueError, match=r"."):
        call(session)
    session.counts(image(0), 0, 0, 1)


def test_a_closed_session_says_so(session):
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.counts(image(0), 0, 0, 1)


def test_many_sessions_leave_nothing_behind(artifact, server):
    """TVM has room for 32 sessions in a process; a lost one must make room like a closed one."""
    for number in range(40):
        session = open_board(artifact, Servers([server.address]), FAST)
        if number % 2:
            session.interrupt()
            with pytest.raises(DeviceLostError, match="interrupted"):
                session.counts(image(0), 0, 0, 1)
        session.close()


@pytest.mark.parametrize(
    ("needed", "machine", "modalias", "missing"),
    [
        (("avx2", "avx512f", "avx512_vnni"), 62, X86, []),
        (("avx2", "amx_tile"), 62, X86, ["amx_tile"]),
        (("asimd", "asimddp"), 183, ARM, []),
        (("asimd", "asimddp", "i8mm"), 183, ARM, ["i8mm"]),
        (("i8mm",), 183, ARM.replace(b",0014", b",004D"), []),
        (("i8mm",), 183, ARM.replace(b",0014", b",002D"), []),
        (("asimddp",), 183, X86, []),  # an emulator
        (("something-new",), 62, X86, []),
        (("avx2",), 62, b"", []),
        (("neon",), 40, b"cpu:type:armv7l:feature:,0001", []),
    ],
)
def test_what_a_processor_lacks(needed, machine, modalias, missing):
    library = b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little")
    assert missing_flags(needed, library, modalias) == missing


def with_flags(artifact: Artifact, *flags: str) -> Artifact:
    facts = {**artifact.manifest.target_facts, "cpu_flags": list(flags)}
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, target_facts=facts))


@pytest.mark.skipif("avx2" not in cpu_flags(), reason="asks an x86 processor with AVX2")
def test_a_board_without_the_instructions_is_told_before_they_run(artifact, server, monkeypatch):
    """The numbers of Linux agree with /proc/cpuinfo: this machine has what it has, and one flag that nobody has."""
    with open_board(with_flags(artifact, "avx2"), Servers([server.address]), FAST) as session:
        assert session.counts(image(0), 0, 0, 1).sum() == 1
    monkeypatch.setitem(__import__("intcert.runtime.board_cpu", fromlist=["_X86"])._X86, "avx2", (0xFFFF,))
    with pytest.raises(WrongDeviceError, match="needs avx2, which board 127"):
        open_board(with_flags(artifact, "avx2"), Servers([server.address]), FAST)


def test_a_library_that_does_not_load(artifact, server):
    members = {**artifact.members, "lib.so": b"\x7fELF" + bytes(60)}
    with pytest.raises(ArtifactError, match=r"does not load on board .*--target"):
        open_board(dataclasses.replace(artifact, members=members), Servers([server.address]), FAST)


def test_a_crash_in_the_middle_ends_the_call(artifact, service):
    board = service("rpc_server")
    with open_board(artifact, Servers([board.address]), FAST) as session:
        board.crash_session()
        with pytest.raises(DeviceLostError, match=r"board .* closed the connection"):
            session.counts(image(0), 0, 0, 100_000)
    # The server is alive now, but serves nobody any more.
    with pytest.raises(DeviceLostError, match="hangs since its last session crashed"):
        open_board(artifact, Servers([board.address]), Patience(board=0))


def test_a_board_that_stops_answering_is_lost_within_the_timeout(slow_artifact: Path, service):
    board = service("rpc_server")
    with open_board(read_artifact(slow_artifact), Servers([board.address]), Patience(answer=2)) as session:
        threading.Timer(0.5, board.freeze).start()
        begin = time.monotonic()
        with pytest.raises(DeviceLostError, match="has not answered for 2 s"):
            session.counts(image(0), 0, 0, 1 << 26)
        assert time.monotonic() - begin < 20


def test_a_client_that_leaves_in_the_middle_of_a_call_leaves_a_server_that_serves(slow_artifact: Path, server):
    """A server that cannot send its answer never serves again, so somebody stays to take it."""
    source = Servers([server.address])
    for _ in range(3):
        with open_board(read_artifact(slow_artifact), source, FAST) as session:
            threading.Timer(0.7, session.interrupt).start()
            with pytest.raises(DeviceLostError, match="was interrupted"):
                session.counts(image(0), 0, 0, 1 << 26)
    with open_board(read_artifact(slow_artifact), source, FAST) as session:
        assert session.counts(image(0), 0, 0, 1).sum() == 1


def test_an_illegal_instruction_is_named_as_such(artifact, service):
    """The library of this test crashes at its first sample, as one with unknown instructions would."""
    library = artifact.library
    crashing = crash_on_call(library, "counts")
    board = service("rpc_server")
    members = {**artifact.members, "lib.so": crashing}
    begin = time.monotonic()
    with pytest.raises(BoardCrashedError, match=r"at the first sample; if its processor lacks .*--target"):
        open_board(dataclasses.replace(artifact, members=members), Servers([board.address]), FAST)
    assert time.monotonic() - begin < 20


def test_a_session_that_lasts_too_long(artifact, server):
    source = Servers([server.address])
    with open_board(artifact, source, Patience(answer=5, session=1)) as session:
        assert not session.is_old
        time.sleep(2)
        assert session.is_old
        with pytest.raises(DeviceLostError, match="whose time was over"):
            session.counts(image(0), 0, 0, 1)
