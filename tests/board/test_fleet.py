"""Several boards at once: work is shared out, and what a lost one had is done again."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from intcert.runtime.boards import Patience, Servers, Tracker
from intcert.runtime.errors import DeviceLostError
from intcert.runtime.fleet import Fleet
from intcert.runtime.rpc_link import Address

FAST = Patience(answer=5.0, board=20.0)
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def count(session, item: int) -> tuple[str, list[int]]:
    return session.device, session.counts(IMAGE, item, 0, 1000).sum(axis=0).tolist()


@pytest.fixture
def two_boards(service):
    """A tracker, and two servers of the key ``pair``."""
    tracker = service("rpc_tracker")
    boards = [service("rpc_server", "--tracker", str(tracker.address), "--key", "pair") for _ in range(2)]
    source = Tracker(tracker.address, "pair")
    deadline = time.monotonic() + 30
    while source.count(None) < 2:  # they register a moment after they begin to listen
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return tracker, boards, source


def test_every_item_once_and_the_same_wherever(artifact, server, two_boards):
    _, boards, source = two_boards
    expected = {item: result for item, (_, result) in Fleet(artifact, Servers([server.address])).map(count, range(20))}
    fleet = Fleet(artifact, source, patience=FAST)
    assert fleet.count == 2
    found = list(fleet.map(count, range(20)))
    assert len(found) == 20
    assert {item: result for item, (_, result) in found} == expected
    assert {device for _, (device, _) in found} == {f"{board.address} (pair)" for board in boards}


def test_one_board_keeps_the_order(artifact, server):
    fleet = Fleet(artifact, Servers([server.address]), patience=FAST)
    assert [item for item, _ in fleet.map(count, [3, 1, 2])] == [3, 1, 2]
    assert list(fleet.map(count, [])) == []


def test_sessions_are_renewed_before_the_server_ends_them(artifact, server):
    def slow(session, item: int) -> int:
        time.sleep(0.4)
        session.counts(IMAGE, item, 0, 1)
        return item

    notes: list[str] = []
    patience = Patience(answer=5, board=20, session=2)
    fleet = Fleet(artifact, Servers([server.address]), patience=patience, notify=notes.append)
    assert [item for item, _ in fleet.map(slow, range(8))] == list(range(8))
    assert notes == []


def test_the_work_of_a_killed_board_is_done_on_another(artifact, two_boards):
    _, boards, source = two_boards
    notes: list[str] = []
    fleet = Fleet(artifact, source, patience=Patience(answer=5, board=2), notify=notes.append)
    killed = threading.Event()
    done_on_first: list[int] = []

    def work(session, item: int) -> None:
        """On the first board: one item, and its end in the second. On the other one: nothing before that."""
        if not session.device.startswith(str(boards[0].address)):
            killed.wait(60)
        elif done_on_first:
            boards[0].kill()
            killed.set()
        count(session, item)
        done_on_first.append(item)

    assert sorted(item for item, _ in fleet.map(work, range(10))) == list(range(10))
    assert killed.is_set()
    assert any(str(boards[0].address) in note and "done again" in note for note in notes), notes


def test_a_restarted_board_goes_on_with_its_work(artifact, service):
    board = service("rpc_server")
    notes: list[str] = []
    fleet = Fleet(artifact, Servers([board.address]), patience=Patience(answer=5, board=60), notify=notes.append)
    killed = threading.Event()

    def work(session, item: int) -> None:
        if item == 5 and not killed.is_set():
            killed.set()
            board.kill()
            threading.Timer(1.0, board.begin).start()
        count(session, item)

    assert sorted(item for item, _ in fleet.map(work, range(10))) == list(range(10))
    assert any("done again" in note for note in notes), notes


def test_the_tracker_is_not_needed_while_boards_work(artifact, two_boards):
    tracker, _, source = two_boards
    found = []
    for item in Fleet(artifact, source, patience=FAST).map(count, range(20)):
        found.append(item)
        if len(found) == 3:
            tracker.kill()
    assert len(found) == 20


def test_no_board_left_is_an_error_that_names_the_last(artifact, service):
    board = service("rpc_server")
    fleet = Fleet(artifact, Servers([board.address]), patience=Patience(answer=5, board=1))
    found = []

    def killing(session, item: int) -> int:
        found.append(item)
        if len(found) == 3:
            board.kill()
        return session.counts(IMAGE, item, 0, 1).sum()

    with pytest.raises(DeviceLostError, match=f"board {board.address} cannot be reached"):
        list(fleet.map(killing, range(10)))
    assert found == [0, 1, 2]


def test_no_free_board_is_an_error_after_the_wait(artifact, service):
    tracker = service("rpc_tracker")
    fleet = Fleet(artifact, Tracker(tracker.address, "rasp4"), patience=Patience(board=1))
    with pytest.raises(DeviceLostError, match=r"no board of key 'rasp4' was free .* within 1 s"):
        list(fleet.map(count, [1]))


def test_no_tracker_is_an_error(artifact):
    with pytest.raises(DeviceLostError, match=r"tracker 127.0.0.1:1 cannot be reached"):
        Fleet(artifact, Tracker(Address("127.0.0.1", 1), "rasp4"))


def test_a_defect_in_the_work_ends_the_run(artifact, server):
    def broken(session, item: int) -> None:
        raise ZeroDivisionError(f"item {item}")

    with pytest.raises(ZeroDivisionError, match="item 1"):
        list(Fleet(artifact, Servers([server.address])).map(broken, [1, 2]))


def test_stopping_early_frees_the_board(artifact, server):
    fleet = Fleet(artifact, Servers([server.address]), patience=FAST)
    results = fleet.map(count, range(1000))
    next(results)
    results.close()
    assert len(list(fleet.map(count, range(3)))) == 3
