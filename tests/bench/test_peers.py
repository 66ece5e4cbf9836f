"""Peers take turns, those that are missing or fail are reported beside the others, and ratios are of medians."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

import peers as command
from peer_models import FORMS, SIDES, ModelFiles
from peer_networks import PEERS, Peer
from peer_process import missing_packages
from peers import Result, main, measure, plot, ratios, report
from rich.console import Console

from intcert import targets


class Sleeper(Peer):
    """Takes a millisecond and 10 microseconds an image, so that the largest batch is the fastest."""

    def prepare(self, files: ModelFiles, cores: int) -> None:
        self._cores = cores

    def run(self, batch: int) -> int:
        end = time.process_time() + 1e-3 + 1e-5 * batch
        while time.process_time() < end:
            pass
        return batch

    def settings(self) -> dict[str, object]:
        return {"cores": self._cores, "affinity": len(os.sched_getaffinity(0))}


class Missing(Sleeper):
    packages = ("no_such_package", "click")


class Failing(Sleeper):
    def prepare(self, files: ModelFiles, cores: int) -> None:
        raise RuntimeError("this library\nwill not load")


class Dying(Sleeper):
    """Takes its process along, as a crash in a library does."""

    def prepare(self, files: ModelFiles, cores: int) -> None:
        os._exit(3)


@pytest.fixture
def files(tmp_path) -> ModelFiles:
    return ModelFiles("resnet20", tmp_path)


def test_what_is_missing_or_fails_does_not_stop_the_others(files):
    peers = [kind(kind.__name__, "none") for kind in (Missing, Sleeper, Failing, Dying)]
    results = measure(peers, files, frozenset([min(os.sched_getaffinity(0))]), 3, 0.02)
    missing, sleeper, failing, dying = results
    assert (missing.status, missing.note) == ("missing", "no_such_package: pip install 'intcert[bench]'")
    assert (failing.status, failing.note) == ("failed", "RuntimeError: this library")
    assert dying.status == "failed"
    assert "BrokenProcessPool" in dying.note
    assert sleeper.status == "ok"
    assert sleeper.batch == 256
    assert len(sleeper.images_per_second) == 3
    assert max(sleeper.images_per_second) <= 256 / (1e-3 + 256e-5)
    assert sleeper.settings == {"cores": 1, "affinity": 1}
    assert sleeper.peak_memory > 1 << 20
    assert json.loads(files.path("batches-1.json").read_text()) == {"Sleeper": 256}
    # The table says so too.
    screen = Console(width=200, file=io.StringIO())
    screen.print(report(results))
    text = screen.file.getvalue()
    assert "no_such_package: pip install 'intcert[bench]'" in text
    assert "RuntimeError: this library" in text


@pytest.mark.parametrize(("before", "after"), [(16, 16), (7, 256)])
def test_a_remembered_batch_is_taken_if_it_is_still_one_of_the_peer_s(files, before, after):
    remembered = files.path("batches-1.json")
    remembered.parent.mkdir()
    remembered.write_text(json.dumps({"a": before, "elsewhere": 3}))
    (result,) = measure([Sleeper("a", "none")], files, frozenset([min(os.sched_getaffinity(0))]), 1, 0.01)
    assert result.batch == after
    assert json.loads(remembered.read_text()) == {"a": after, "elsewhere": 3}


def made(name: str, noise: bool, rates: list[float], status: str = "ok") -> Result:
    return Result(name, noise, status=status, images_per_second=rates)


def test_ratios_are_of_medians():
    results = [
        made("intcert a", True, [30.0, 10.0, 90.0]),
        made("intcert a, network only", False, [60.0]),
        made("other", False, [15.0, 14.0, 1000.0]),
        made("absent", False, [], "missing"),
    ]
    assert ratios(results) == {"intcert a": {"intcert a, network only": 0.5, "other": 2.0}}


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    results = [made("intcert a", True, [30.0, 10.0]), made("absent", False, [], "missing"), made("b", True, [1.0])]
    plot(results, "title", tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes()[:4] == b"\x89PNG"


def test_peers_name_files_that_can_be_made():
    assert {peer.form for peer in PEERS} <= FORMS.keys()
    assert {source for form in FORMS.values() for source in form.sources} <= FORMS.keys()
    assert len({peer.name for peer in PEERS}) == len(PEERS)


def test_sides_are_those_of_the_networks():
    from intcert.train.models import MODELS

    assert {name: (3, side, side) for name, side in SIDES.items()} == {name: MODELS[name].input_shape for name in SIDES}


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (["--cores", "0"], "--cores 0 is not among 1"),
        (["--cores", "many"], "--cores many is not among 1"),
        (["--only", "abacus"], "--only abacus is in no name"),
        (["--json", "nowhere/peers.json"], "no folder nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, saying):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 4
    assert saying in result.output


RUNNABLE = [target.name for target in targets.runnable()]


@pytest.mark.slow
@pytest.mark.skipif(not {"x86-vnni", "x86-amx"} & set(RUNNABLE), reason="needs AVX-512 VNNI")
def test_the_command_measures_the_real_thing(tmp_path):
    """ResNet-20 from random weights to a JSON file."""
    path, picture = tmp_path / "peers.json", tmp_path / "peers.png"
    words = ["--only", "intcert x86-vnni", "--only", "fp32 eager", "--rounds", "2", "--seconds", "0.01"]
    words += ["--work", str(tmp_path / "work"), "--json", str(path), "--plot", str(picture)]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert found.keys() == {
        "format_version", "arch", "image", "sigma", "cores", "rounds", "seconds", "machine", "peers", "ratios",
    }  # fmt: skip
    assert (found["format_version"], found["arch"], found["image"]) == (command.FORMAT_VERSION, "resnet20", [32, 32, 3])
    assert len(found["cores"]) == 1
    assert {"cpu", "cpu_flags", "versions"} <= found["machine"].keys()
    assert [peer["name"] for peer in found["peers"]] == [
        "intcert x86-vnni", "intcert x86-vnni, network only", "PyTorch fp32 eager",
    ]  # fmt: skip
    for peer in found["peers"]:
        assert peer["status"] == "ok", peer["note"]
        assert len(peer["images_per_second"]) == 2
        assert peer["peak_memory"] > 1 << 20
        assert f"{peer['name']} " in result.output
    assert found["ratios"].keys() == {"intcert x86-vnni"}
    assert found["ratios"]["intcert x86-vnni"]["PyTorch fp32 eager"] > 1
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.packages], ids=lambda peer: peer.name)
def test_every_library_runs_the_network(peer, tmp_path_factory):
    missing = missing_packages(peer.packages)
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    shared: Path = tmp_path_factory.getbasetemp() / "peers"
    files = ModelFiles("resnet20", shared)
    (result,) = measure([peer], files, frozenset([min(os.sched_getaffinity(0))]), 1, 0.01)
    assert result.status == "ok", result.note
    assert result.median > 0
