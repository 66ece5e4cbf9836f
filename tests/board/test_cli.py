"""``--rpc-server``, ``--rpc-tracker`` and their kin on the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from intcert.cli.main import main
from intcert.runtime.artifact import read_artifact
from intcert.runtime.ledger import equal_ledgers, read_ledger


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("TVM_TRACKER_HOST", "TVM_TRACKER_PORT"):
        monkeypatch.delenv(name, raising=False)


def intcert(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def certify(colour_artifact, colour_folder, tmp_path):
    def run(name: str, *words: object) -> tuple[Result, Path]:
        path = tmp_path / f"{name}.tsv"
        source = f"folder:{colour_folder}"
        return intcert("certify", colour_artifact, "--data", source, "--n", 1000, "--seed", 5, *words, "-o", path), path

    return run


def test_a_board_certifies_what_this_machine_does(certify, server):
    _, here = certify("here")
    result, there = certify("there", "--rpc-server", server.address)
    assert result.exit_code == 0, result.output
    assert equal_ledgers(read_ledger(here), read_ledger(there))
    assert {row.device for row in read_ledger(there)} == {str(server.address)}
    assert "certified at radius 0.25    6 of 7" in result.stdout


def test_a_board_is_measured(colour_artifact, server, tmp_path):
    path = tmp_path / "bench.json"
    words = ("bench", colour_artifact, "--n", 100, "--rounds", 2, "--rpc-server", server.address, "--json", path)
    result = intcert(*words)
    assert result.exit_code == 0, result.output
    assert f"on {server.address}" in result.stdout
    found = json.loads(path.read_text())
    assert found["device"] == str(server.address)
    layers = read_artifact(colour_artifact).manifest.layers
    assert [layer["name"] for layer in found["layers"]] == [layer["name"] for layer in layers]
    assert sum(layer["seconds"] for layer in found["layers"]) > 0


def test_a_board_tunes(colour_model, server, tmp_path):
    pytest.importorskip("xgboost")
    path = tmp_path / "db.json"
    words = ("tune", colour_model, "--target", "x86", "--trials", 1, "--rpc-server", server.address, "--db", path)
    result = intcert(*words)
    assert result.exit_code == 0, result.output
    assert "0 candidates" in result.stdout
    assert json.loads(path.read_text())["layers"]


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (("bench", "--device", "cpu"), "for this machine"),
        (("bench", "--estimate", "cortex-a55"), "takes no board"),
        (("bench", "--threads", 2), "works with one core"),
    ],
)
def test_what_a_board_cannot_be_measured_with(words, saying, colour_artifact, server):
    command, *others = words
    result = intcert(command, colour_artifact, "--rpc-server", server.address, *others)
    assert result.exit_code in (2, 4)
    assert saying in result.stderr


def test_a_tracker_by_option_and_by_environment(certify, service, monkeypatch):
    tracker = service("rpc_tracker")
    service("rpc_server", "--tracker", str(tracker.address), "--key", "rasp4")
    _, here = certify("here")
    result, there = certify("there", "--rpc-tracker", tracker.address, "--rpc-key", "rasp4")
    assert result.exit_code == 0, result.output
    assert equal_ledgers(read_ledger(here), read_ledger(there))
    monkeypatch.setenv("TVM_TRACKER_HOST", tracker.address.host)
    monkeypatch.setenv("TVM_TRACKER_PORT", str(tracker.address.port))
    result, again = certify("again", "--rpc-key", "rasp4")
    assert result.exit_code == 0, result.output
    assert {row.device.partition(" ")[2] for row in read_ledger(again)} == {"(rasp4)"}


def test_predict_on_boards_prints_in_order(colour_artifact, colour_folder, server):
    words = ("predict", colour_artifact, "--data", f"folder:{colour_folder}", "--seed", 5)
    result = intcert(*words, "--rpc-server", server.address)
    assert result.exit_code == 0, result.output
    assert result.stdout == intcert(*words).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rpc-server", "localhost"), "'localhost' is no address"),
        (("--rpc-tracker", "127.0.0.1:9190"), "needs --rpc-key"),
        (("--rpc-key", "rasp4"), "TVM_TRACKER_HOST"),
        (("--rpc-tracker", "a:1", "--rpc-key", "k", "--rpc-server", "b:1"), "either"),
        (("--boards", 2), "no boards without"),
        (("--rpc-timeout", 5), "no boards without"),
        (("--rpc-server", "127.0.0.1:1", "--threads", 2), "--threads is for this machine"),
    ],
)
def test_options_that_make_no_sense(certify, words, said):
    result, path = certify("run", *words)
    assert result.exit_code == 4, result.output
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not path.exists()


def test_a_rival_runs_on_no_board(colour_folder, tmp_path):
    words = ("certify", tmp_path / "rival.pt2", "--data", f"folder:{colour_folder}", "-o", tmp_path / "run.tsv")
    result = intcert(*words, "--rpc-server", "127.0.0.1:9090")
    assert result.exit_code == 4
    assert "boards run compiled artifacts" in result.stderr


@pytest.mark.parametrize("command", ["certify", "predict"])
def test_the_help_warns(command):
    assert "no authentication" in " ".join(intcert(command, "--help").output.split())


def test_no_board_is_exit_code_3(certify):
    result, path = certify("run", "--rpc-server", "127.0.0.1:1", "--rpc-wait", 0)
    assert result.exit_code == 3
    assert "board 127.0.0.1:1 cannot be reached (Connection refused)" in result.stderr
    assert "--resume" in result.stderr
    assert read_ledger(path) == []


def test_a_board_that_dies_leaves_a_ledger_to_resume(service, slow_artifact, colour_folder, tmp_path):
    board = service("rpc_server")
    path = tmp_path / "run.tsv"
    words = ["certify", slow_artifact, "--data", f"folder:{colour_folder}", "--n", "100000", "--seed", "5"]
    words += ["--rpc-server", board.address, "--rpc-wait", "1", "-o", path]
    command = [sys.executable, "-c", "from intcert.cli.main import main; main()", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_rows(path, 1)
        board.kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    done = read_ledger(path)
    assert 1 <= len(done) < 7
    board.start()
    result = intcert(*words, "--resume")
    assert result.exit_code == 0, result.output
    rows = read_ledger(path)
    assert rows[: len(done)] == done
    assert [row.idx for row in rows] == list(range(7))


def test_ctrl_c_frees_the_board_and_keeps_the_rows(service, slow_artifact, colour_folder, tmp_path):
    board = service("rpc_server")
    path = tmp_path / "run.tsv"
    words = ["certify", slow_artifact, "--data", f"folder:{colour_folder}", "--n", "100000", "-o", path]
    words += ["--rpc-server", board.address]
    command = [sys.executable, "-c", "from intcert.cli.main import main; main()", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_rows(path, 0)
        while "load_module" not in board.output:
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    result = intcert("predict", slow_artifact, "--data", f"folder:{colour_folder}", "--rpc-server", board.address)
    assert result.exit_code == 0, result.output


def wait_for_rows(path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        with contextlib.suppress(Exception):
            if len(read_ledger(path)) >= count:
                return
        time.sleep(0.02)
