"""Tuning databases: their files, which entries fit, and that they decide times and nothing else."""

from __future__ import annotations

import dataclasses
import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from random_models import convolution_graph, random_integer_graph

from intcert import targets
from intcert.cli.options import model_path
from intcert.compile.build import compile_artifact, load_model
from intcert.compile.database import Database, LayerEntry, NetworkEntry, open_database, read_database, shipped_database
from intcert.compile.graph import IntegerGraph
from intcert.compile.layer import layers_of, network_key, tunable
from intcert.compile.nodes import Conv2d
from intcert.compile.plan import make_plan
from intcert.compile.reference import ReferenceSession
from intcert.runtime.errors import DatabaseError
from intcert.runtime.noise import noise_law
from intcert.runtime.session import open_artifact
from intcert.targets import Target

X86 = targets.find("x86")
MACHINE = {"cpu": "a processor", "flags": "avx2", "tvm": "0.27"}
FILES = sorted(Path(str(resources.files("intcert.compile").joinpath("databases"))).glob("*.json"))


def other_choices(graph: IntegerGraph, target: Target, chunk: int) -> Database:
    """A database that chooses, for every layer that has a choice, the last schedule of its list."""
    database = Database(target.name, MACHINE, {"trials": 1})
    for layer in layers_of(graph, chunk, target):
        if tunable(layer):
            chosen = dataclasses.asdict(layer.schedules()[-1])
            database.layers[layer.workload] = LayerEntry(default_us=2.0, best_us=1.5, schedule=chosen)
    database.networks[network_key(graph, target)] = NetworkEntry(20.0, 15.0, chunk=chunk, name="a network")
    return database


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    graph = random_integer_graph(2, "q15")
    database = other_choices(graph, X86, 4)
    path = tmp_path / "x86.json"
    database.write(path)
    text = path.read_text()
    read = read_database(path, X86)
    assert read == database
    assert read.to_json() == text
    assert os.listdir(tmp_path) == ["x86.json"]
    lines = [line for line in text.splitlines() if '"workload"' in line]
    assert len(lines) == len(database.layers) > 1
    shuffled = dataclasses.replace(database, layers=dict(reversed(database.layers.items())))
    assert shuffled.to_json() == text


def test_workloads_do_not_depend_on_weights() -> None:
    first = convolution_graph(1, "q15", (6, 7, 16), 24, (3, 3))
    nodes = [dataclasses.replace(n, weight=-n.weight) if isinstance(n, Conv2d) else n for n in first.nodes]
    second = dataclasses.replace(first, nodes=tuple(nodes))
    other = convolution_graph(1, "q15", (6, 7, 16), 24, (3, 5))
    assert first.digest != second.digest
    workloads = [[layer.workload for layer in layers_of(graph, 2, X86)] for graph in (first, second, other)]
    assert workloads[0] == workloads[1] != workloads[2]
    assert network_key(first, X86) == network_key(second, X86) != network_key(other, X86)
    assert workloads[0] != [layer.workload for layer in layers_of(first, 3, X86)]


@pytest.mark.parametrize("target", targets.runnable(), ids=lambda target: target.name)
def test_counts_do_not_depend_on_the_database(target: Target, tmp_path: Path) -> None:
    graph = random_integer_graph(5, "q15")
    path = tmp_path / "db.json"
    database = other_choices(graph, target, 5)
    database.write(path)
    manifest = compile_artifact(graph, tmp_path / "tuned", target=target, sigma="0.25", database=path)
    plain = compile_artifact(graph, tmp_path / "plain", target=target, sigma="0.25", database="none")
    assert manifest.chunk == 5
    chosen = [layer["schedule"] for layer in manifest.layers]
    assert [choice for choice in chosen if choice] == [
        dataclasses.asdict(layer.schedules()[-1]) for layer in layers_of(graph, 5, target) if layer.schedules()
    ]
    assert chosen != [layer["schedule"] for layer in plain.layers]
    image = np.random.default_rng(1).integers(0, 256, graph.input_shape, np.uint8)
    expected = ReferenceSession(graph, noise_law("0.25")).counts(image, 3, 0, 130)
    with open_artifact(tmp_path / "tuned", threads=1) as tuned, open_artifact(tmp_path / "plain", threads=1) as session:
        np.testing.assert_array_equal(tuned.counts(image, 3, 0, 130), expected)
        np.testing.assert_array_equal(session.counts(image, 3, 0, 130), expected)


def test_a_schedule_that_no_longer_exists_is_refused(tmp_path: Path) -> None:
    graph = random_integer_graph(2, "q15")
    database = other_choices(graph, X86, 2)
    workload, entry = next(iter(database.layers.items()))
    database.layers[workload] = dataclasses.replace(entry, schedule={"columns": 1, "blocks": 99})
    database.write(tmp_path / "db.json")
    with pytest.raises(DatabaseError, match=r'"blocks": 99.*--db none$'):
        compile_artifact(graph, tmp_path / "a", target=X86, sigma="0.25", database=tmp_path / "db.json")
    assert os.listdir(tmp_path) == ["db.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; make it with intcert tune"),
        ("no JSON", "is not a tuning database"),
        ('{"format": 99}', "its format is 99, not 1"),
        ("[]", "its format is None"),
        ('{"format": 1, "target": "x86"}', "KeyError: 'machine'"),
        (
            '{"format": 1, "target": "x86", "machine": {}, "settings": {}, "layers": [{"workload": 1}], "networks": 0}',
            "TypeError: an entry",
        ),
        (Database("x86-amx", MACHINE, {}).to_json(), "tuned for x86-amx, not for x86"),
    ],
)
def test_files_that_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "db.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatabaseError, match=message) as caught:
        open_database(path, X86)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_database_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatabaseError, match="cannot be written"):
        Database("x86", MACHINE, {}).write(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_shipped_databases_serve_their_own_targets_only() -> None:
    assert open_database("none", X86) is None
    names = {path.stem for path in FILES}
    assert names <= {target.name for target in targets.TARGETS}
    for target in targets.TARGETS:
        database = shipped_database(target)
        assert (database is not None) == (target.name in names)
        assert shipped_database(dataclasses.replace(target, arena_budget=1)) is None
        if database:
            assert database.target == target.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_databases_fit_the_shipped_model(path: Path) -> None:
    """Every layer that has a choice finds its entry, whose schedule exists; the file is as the tuner writes it."""
    target, graph = targets.find(path.stem), load_model(model_path("demo")).graph
    database = shipped_database(target)
    assert database.to_json() == path.read_text()
    assert set(target.cpu_flags) == set(database.machine["flags"].split())
    chunk = database.chunk(network_key(graph, target))
    plan = make_plan(graph, noise_law("0.25"), target, database=database)
    assert plan.batch == chunk
    for layer, step in zip(layers_of(graph, chunk, target), plan.steps, strict=True):
        if tunable(layer):
            assert step.kernel.schedule == database.schedule(layer) is not None
