"""``intcert tune`` on a board."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from crashing import crash_on_call
from random_models import convolution_graph

pytest.importorskip("xgboost")

from intcert import targets
from intcert.compile.database import read_database
from intcert.compile.graph import IntegerGraph
from intcert.compile.layer import Layer, layers_of
from intcert.compile.nodes import Conv2d
from intcert.compile.tune import tune
from intcert.compile.tune.board import BoardDevice
from intcert.compile.tune.device import CandidateError
from intcert.compile.tune.program import Program, check_cases, expected_result, layer_program, result_of, with_operands
from intcert.runtime.boards import Patience, Servers
from intcert.runtime.errors import DeviceLostError

X86 = targets.find("x86")
FAST = Patience(answer=10, board=20)


@pytest.fixture(scope="module")
def graph() -> IntegerGraph:
    return convolution_graph(3, "q15", (3, 3, 16), 16, (3, 3), groups=16)


@pytest.fixture(scope="module")
def layer(graph) -> Layer:
    return next(layer for layer in layers_of(graph, 2, X86) if isinstance(layer.node, Conv2d))


@pytest.fixture(scope="module")
def program(layer) -> Program:
    return layer_program(layer, None)


@pytest.fixture
def device(server) -> Iterator[BoardDevice]:
    with BoardDevice(Servers([server.address]), FAST, pytest.fail) as board:
        yield board


def test_a_board_gives_the_reference_s_bits_and_its_own_times(device, layer, program):
    for operands in check_cases(layer, 1):
        memory = device.run(program, with_operands(program, layer, operands))
        np.testing.assert_array_equal(result_of(program, layer, memory), expected_result(layer, operands))
    times = device.measure([program, program], 5)
    assert times.shape == (2, 5)
    assert (times > 0).all()
    assert 0.2 < np.median(times[0]) / np.median(times[1]) < 5


def test_a_network_is_tuned_on_a_board(device, graph, tmp_path):
    path = tmp_path / "db.json"
    report = tune(graph, X86, path, name="one", trials=1, chunk=2, device=device)
    assert report.refused == []
    database = read_database(path, X86)
    assert database.machine["cpu"] == device.cpu
    assert database.layers.keys() >= {layer.workload for layer in layers_of(graph, 2, X86) if layer.schedules()[1:]}


def test_a_lost_board_is_asked_again_and_a_candidate_that_kills_it_is_refused(service, layer, program):
    board = service("rpc_server")
    notes: list[str] = []

    def restart(line: str) -> None:
        notes.append(line)
        board.kill()
        board.start()

    with BoardDevice(Servers([board.address]), FAST, restart) as device:
        board.kill()
        assert device.measure([program], 1).shape == (1, 1)
        assert len(notes) == 1
        assert notes[0].endswith("asking again")
        crashing = Program(crash_on_call(program.library, "run"), program.memory, program.images)
        with pytest.raises(CandidateError, match=f"board {board.address} .*, twice"):
            device.run(crashing, program.memory)
        assert len(notes) == 2


def test_without_a_board_nobody_is_to_blame(service, program):
    board = service("rpc_server")
    device = BoardDevice(Servers([board.address]), Patience(answer=2, board=1), lambda line: None)
    board.kill()
    with pytest.raises(DeviceLostError, match="cannot be reached"):
        device.measure([program], 1)
