"""The tuner: candidates of every kernel family, the rule by which one wins, and everything that may go wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from broken_layers import BrokenLayer
from random_models import convolution_graph

pytest.importorskip("xgboost")

from intcert import targets
from intcert.compile.database import NetworkEntry, read_database
from intcert.compile.graph import IntegerGraph
from intcert.compile.layer import Layer, layers_of, network_key, tunable
from intcert.compile.nodes import Conv2d
from intcert.compile.tune import Report, session, tune
from intcert.compile.tune.device import LocalDevice, Worker
from intcert.compile.tune.journal import Journal, Trial
from intcert.compile.tune.program import Program
from intcert.runtime.errors import DatabaseError, WrongDeviceError
from intcert.targets import Target

X86 = targets.find("x86")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(60) as process:
        yield process


def layer_of(graph: IntegerGraph, target: Target, batch: int = 2) -> Layer:
    """The convolution that a graph of ``convolution_graph`` is about, its last."""
    return [layer for layer in layers_of(graph, batch, target) if isinstance(layer.node, Conv2d)][-1]


class Scripted(LocalDevice):
    """Runs programs, but times them as told: the first of a measurement takes 1 s, the others these, in turns."""

    def __init__(self, worker: Worker, *seconds: float) -> None:
        super().__init__(worker)
        self.seconds = seconds

    def measure(self, programs: Sequence[Program], rounds: int) -> np.ndarray:
        times = np.ones((len(programs), rounds))
        times[1:] = [second for _, second in zip(range(rounds), cycle(self.seconds), strict=False)]
        return times


@pytest.fixture
def graph() -> IntegerGraph:
    """One convolution with a choice, of three tiles of columns."""
    return convolution_graph(3, "q15", (3, 3, 16), 16, (3, 3), groups=16)


def run_tuner(graph: IntegerGraph, path: Path, worker: Worker, *seconds: float, trials: int = 8) -> Report:
    return tune(graph, X86, path, name="one", trials=trials, chunk=2, device=Scripted(worker, *seconds))


@pytest.mark.parametrize(
    ("seconds", "wins"),
    [
        pytest.param([0.9], True, id="ten percent"),
        pytest.param([0.99], False, id="one percent, within the margin"),
        pytest.param([0.8, 0.8, 0.8, 1.2], False, id="sixteen rounds of twenty-one"),
    ],
)
def test_a_candidate_must_win_by_more_than_noise(seconds, wins, graph, worker: Worker, tmp_path: Path) -> None:
    run_tuner(graph, tmp_path / "db.json", worker, *seconds)
    layer = layer_of(graph, X86)
    database = read_database(tmp_path / "db.json", X86)
    assert (database.schedule(layer) != layer.schedules()[0]) == wins
    entry = database.layers[layer.workload]
    assert (entry.best_us < entry.default_us) == wins
    assert database.settings["margin"] == 0.02
    assert database.networks == {}


def test_images_at_once_are_a_choice_of_the_network(graph, worker: Worker, tmp_path: Path) -> None:
    """Every other chunk takes 0.4 s where the planner's 64 images take 1 s: an image is quickest among 32."""
    device = Scripted(worker, 0.4)
    report = tune(graph, X86, tmp_path / "db.json", name="one", trials=1, device=device)
    assert report.network == NetworkEntry(default_us=15625.0, best_us=12500.0, chunk=32, name="one")
    assert read_database(tmp_path / "db.json", X86).chunk(network_key(graph, X86)) == 32


def test_a_real_run_is_resumed_where_it_stopped(graph, tmp_path: Path) -> None:
    """With real times; every trial is on disk, a torn line is dropped, and nothing is measured twice."""
    path, journal = tmp_path / "db.json", tmp_path / "db.json.trials"
    seen = []
    tune(graph, X86, path, name="one", trials=1, chunk=2, watch=seen.append)
    layers = [layer for layer in layers_of(graph, 2, X86) if tunable(layer)]
    first = journal.read_text().splitlines()
    assert len(first) == 1 + len({layer.workload for layer in layers})
    assert seen[-1].trials == seen[-1].total == len(first) - 1
    with journal.open("a") as file:
        file.write('{"ratio": 0.1, "schedu')
    tune(graph, X86, path, name="one", trials=2, chunk=2)
    second = journal.read_text().splitlines()
    assert second[: len(first)] == first
    assert len(second) == 2 * len(first) - 1
    keys = [json.dumps([entry["workload"], entry["schedule"]]) for entry in map(json.loads, second[1:])]
    assert len(set(keys)) == len(keys)
    database = read_database(path, X86)
    assert set(database.layers) == {layer.workload for layer in layers}
    before = path.read_bytes()
    report = tune(graph, X86, path, name="one", trials=2, chunk=2)
    assert path.read_bytes() == before
    assert [entry for _, _, entry in report.layers] == list(database.layers.values())


def test_broken_candidates_are_reported_and_never_stored(graph, worker, tmp_path: Path, monkeypatch) -> None:
    """One gives other bits, one cannot be built, one crashes: all seem to take half the default's time."""
    graph = convolution_graph(3, "q15", (3, 4, 16), 16, (3, 3), groups=16)

    def broken(*arguments: object) -> list[Layer]:
        return [BrokenLayer(**vars(layer)) for layer in layers_of(*arguments)]

    monkeypatch.setattr(session, "layers_of", broken)
    report = run_tuner(graph, tmp_path / "db.json", worker, 0.5)
    assert report.network is None
    refused = {json.loads(schedule).get("columns"): reason for _, schedule, reason in report.refused}
    assert refused.keys() == {1, 2, 3}
    assert refused[1].endswith("results differ from the reference")
    assert refused[2] == "ValueError: no code for this one"
    assert refused[3] == "the process died (SIGABRT)"
    layer = layer_of(graph, X86)
    assert read_database(tmp_path / "db.json", X86).schedule(layer) == layer.schedules()[0]
    again = run_tuner(graph, tmp_path / "db.json", worker, 0.5)
    assert {reason for _, _, reason in again.refused} == set(refused.values())


def test_files_of_another_machine_are_refused(graph, worker, tmp_path: Path) -> None:
    path = tmp_path / "db.json"
    run_tuner(graph, path, worker, 1.0, trials=1)
    device = Scripted(worker, 1.0)
    device.cpu = "another processor"
    with pytest.raises(DatabaseError, match=r"was tuned on .*'another processor'.*; give another --db"):
        tune(graph, X86, path, name="one", trials=1, chunk=2, device=device)
    path.unlink()
    with pytest.raises(DatabaseError, match=r"db.json.trials holds measurements of another processor.*; delete it"):
        tune(graph, X86, path, name="one", trials=1, chunk=2, device=device)
    assert not path.exists()


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.trials"
    header = {"target": "x86"}
    path.write_text(json.dumps(header) + "\n[1]\n")
    with pytest.raises(DatabaseError, match="is not a journal of measurements"):
        Journal(path, header)
    with pytest.raises(DatabaseError, match="cannot be written"):
        Journal(tmp_path / "missing" / "a.trials", header)


def test_a_later_trial_replaces_an_earlier(graph, tmp_path: Path) -> None:
    layer = layer_of(graph, X86)
    with Journal(tmp_path / "a", {}) as journal:
        journal.record(layer.workload, layer.schedules()[1], Trial(0.5))
        journal.record(layer.workload, layer.schedules()[1], Trial(None, "wrong"))
    with Journal(tmp_path / "a", {}) as journal:
        assert list(journal.trials(layer.workload).values()) == [Trial(None, "wrong")]
        assert journal.trials("another") == {}


def test_a_target_that_this_machine_does_not_run_is_refused(graph, tmp_path: Path) -> None:
    with pytest.raises(WrongDeviceError, match="this machine does not run arm-a72"):
        tune(graph, targets.find("arm-a72"), tmp_path / "db.json", name="one")
    assert os.listdir(tmp_path) == []
