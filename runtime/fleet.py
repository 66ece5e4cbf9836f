"""Several boards at once: work is shared out among them, and what a lost board had is done again."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from intcert.runtime.artifact import Artifact
from intcert.runtime.boards import BoardSession, BoardSource, Patience, open_board
from intcert.runtime.errors import DeviceLostError
from intcert.runtime.remote import BoardCrashedError
from intcert.runtime.session import Session

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOSSES = 5  # in a row, without a result between them, after which a worker gives up
_CRASHES = 2  # at the first sample, likewise: a processor without the instructions, not an accident
_FAREWELL_SECONDS = 5.0  # for a thread that waits for a board; nothing is lost if it does not end


class Fleet:
    """The boards of a source, with what ``Session`` says about the artifact that they run.

    Attributes of ``Session`` as in the artifact, and artifact, source, patience, count (boards used at once); device
    is the word "boards".
    """

    def __init__(
        self,
        artifact: Artifact,
        source: BoardSource,
        count: int | None = None,
        patience: Patience | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """count: boards to use at once; None takes all that are free now. notify: told of losses, in a line each.

        Raises:
            DeviceLostError: nothing says how many there are.
        """
        manifest = artifact.manifest
        self.artifact = artifact
        self.input_shape, self.classes = manifest.input_shape, manifest.classes
        self.sigma, self.graph_hash, self.noise_hash = manifest.sigma, manifest.graph_hash, manifest.noise_hash
        self.target, self.device = manifest.target, "boards"
        self.source, self.patience = source, patience or Patience()
        self.notify = notify or (lambda _: None)
        self.count = source.count(count)

    def map(self, work: Callable[[Session, Item], Result], items: Iterable[Item]) -> Generator[tuple[Item, Result]]:
        """Items with ``work(session, item)``, as they are finished, on whichever board is free.

        The work on a board that is lost is done again, on another or when it is back, so ``work`` must give the same
        result whenever it runs. It is called on several threads.

        Raises:
            DeviceLostError: items are left and no board is.
            Exception: whatever else ``work`` or the opening of a board raises.
        """
        todo = deque(items)
        if not todo:
            return
        shift = _Shift(self, work, todo)
        try:
            yield from shift.results()
        finally:
            shift.end()


class _Shift:
    """One call of ``Fleet.map``: a thread for each board, and the items between them."""

    def __init__(self, fleet: Fleet, work: Callable[[Session, Any], Any], todo: deque[Any]) -> None:
        self._fleet, self._work, self._todo = fleet, work, todo
        self._unfinished = len(todo)
        self._stop = threading.Event()
        self._changed = threading.Condition()  # guards _todo, _unfinished and _sessions
        self._sessions: set[BoardSession] = set()
        # What workers report: (item, result), an error that ends the run, or in words why one gave up.
        self._reports: queue.Queue[tuple[Any, Any] | BaseException | str] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"board {number}", daemon=True)
            for number in range(min(fleet.count, len(todo)))
        ]
        for thread in self._threads:
            thread.start()

    def results(self) -> Iterator[tuple[Any, Any]]:
        """(item, result) until all are done."""
        working, missing = len(self._threads), self._unfinished
        while missing:
            report = self._reports.get()
            if isinstance(report, BaseException):
                raise report
            if isinstance(report, str):
                working -= 1
                if not working:
                    raise DeviceLostError(report)
                self._fleet.notify(f"{report}; going on with {working} of {len(self._threads)} boards")
            else:
                missing -= 1
                yield report

    def end(self) -> None:
        """Stop all threads, whatever they wait for."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
            sessions = list(self._sessions)
        for session in sessions:
            session.interrupt()
        for thread in self._threads:
            thread.join(_FAREWELL_SECONDS)

    def _serve(self) -> None:
        """A worker: takes items one by one, and opens a board for them as often as it loses one."""
        session: BoardSession | None = None
        losses = crashes = 0
        reason = ""
        try:
            while (taken := self._take()) is not None:
                if session is not None and session.is_old:
                    session = self._close(session)
                try:
                    if session is None:
                        session = self._open()
                    result = self._work(session, *taken)
                except DeviceLostError as error:
                    self._give_back(*taken)
                    if self._stop.is_set():
                        return
                    crashed = isinstance(error, BoardCrashedError)
                    none_came = session is None and not crashed
                    session = self._close(session)
                    losses, crashes = losses + 1, crashes + crashed
                    # After a crash the board often hangs, but the crash is the reason.
                    reason = str(error) if crashed or not crashes else reason
                    if none_came or losses == _LOSSES or crashes == _CRASHES:
                        self._reports.put(reason)
                        return
                    self._fleet.notify(f"{error}; what it had is done again")
                else:
                    losses = crashes = 0
                    self._finish(*taken, result)
        except BaseException as error:
            self._reports.put(error)
        finally:
            self._close(session)

    def _open(self) -> BoardSession:
        fleet = self._fleet
        session = open_board(fleet.artifact, fleet.source, fleet.patience, stop=self._stop, notify=fleet.notify)
        with self._changed:
            self._sessions.add(session)
        return session

    def _close(self, session: BoardSession | None) -> None:
        if session is not None:
            with self._changed:
                self._sessions.discard(session)
            session.close()

    def _take(self) -> tuple[Any] | None:
        """The next item; waits for those of others, which may come back. None when all are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._todo or not self._unfinished or self._stop.is_set())
            return (self._todo.popleft(),) if self._todo and not self._stop.is_set() else None

    def _give_back(self, item: Any) -> None:
        with self._changed:
            self._todo.appendleft(item)
            self._changed.notify_all()

    def _finish(self, item: Any, result: Any) -> None:
        self._reports.put((item, result))
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()
