"""A board that times candidates and runs them for a check, over TVM's RPC; they are built here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from intcert.compile.tune.device import CandidateError, rounds_of
from intcert.compile.tune.program import ENTRY, Program
from intcert.runtime.boards import BoardSource, Patience, first_board
from intcert.runtime.errors import DeviceLostError, WrongDeviceError
from intcert.runtime.rpc_board import Board

if TYPE_CHECKING:
    from intcert.runtime.rpc_link import Address, Link

Answer = TypeVar("Answer")


class BoardDevice:
    """One board after the other, as they are lost. See ``Device``; a context manager."""

    def __init__(self, source: BoardSource, patience: Patience, notify: Callable[[str], None]) -> None:
        """Takes a board, to say what it is. notify: told of losses, in a line each. Raises DeviceLostError."""
        self._source, self._patience, self._notify = source, patience, notify
        self._board: Board | None = None
        self._address: Address | None = None
        self._loaded: dict[bytes, Any] = {}
        self.cpu = self._connected().description()

    def measure(self, programs: Sequence[Program], rounds: int) -> np.ndarray:
        def times(board: Board) -> np.ndarray:
            timers = [self._timer(board, program) for program in programs]
            return rounds_of(timers, rounds)

        return self._ask(times)

    def run(self, program: Program, memory: np.ndarray) -> np.ndarray:
        def result(board: Board) -> np.ndarray:
            tensor = board.tensor(memory)
            self._module(board, program)[ENTRY](tensor, 1)
            return tensor.numpy()

        return self._ask(result)

    def close(self) -> None:
        """Give the board back; the next question takes one again."""
        if self._board is not None:
            self._board.close()
            self._source.release(self._address)
        self._board = self._address = None
        self._loaded.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Board:
        if self._board is None:

            def use(link: Link, name: str, address: Address) -> tuple[Board, Address]:
                return Board(link, name), address

            self._board, self._address = first_board(self._source, self._patience, use, notify=self._notify)
        return self._board

    def _ask(self, question: Callable[[Board], Answer]) -> Answer:
        """The answer of a board; a second one is asked where the first is lost, which may be the network's fault.

        Raises:
            CandidateError: two boards died of it, or it does not load.
            DeviceLostError: there is no board.
        """
        try:
            return self._ask_once(question)
        except DeviceLostError as error:
            self._notify(f"{error}; asking again")
        self._connected()  # without a board the candidate is not to blame
        try:
            return self._ask_once(question)
        except DeviceLostError as error:
            raise CandidateError(f"{error}, twice") from None

    def _ask_once(self, question: Callable[[Board], Answer]) -> Answer:
        board = self._connected()
        try:
            with board.answers():
                return question(board)
        except WrongDeviceError as error:
            raise CandidateError(str(error)) from None
        except BaseException:
            # Also a question that was broken off: its answer would be taken for the next one's.
            self.close()
            raise

    def _module(self, board: Board, program: Program) -> Any:
        if program.library not in self._loaded:
            self._loaded[program.library] = board.load(program.library)
        return self._loaded[program.library]

    def _timer(self, board: Board, program: Program) -> Callable[[int], float]:
        """Seconds of so many runs, by the board's clock."""
        memory = board.tensor(program.memory)
        evaluate = self._module(board, program).time_evaluator(ENTRY, board.cpu, number=1, repeat=1)
        return lambda repeats: float(evaluate(memory, repeats).mean)
