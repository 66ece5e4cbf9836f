"""``intcert tune``, and ``intcert compile --db``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intcert.runtime.artifact import read_artifact


def schedules(path: Path) -> list[dict[str, object] | None]:
    return [layer["schedule"] for layer in read_artifact(path).manifest.layers]


def test_tune_writes_what_compile_takes(intcert, colour_model, tmp_path, monkeypatch):
    pytest.importorskip("xgboost")
    monkeypatch.chdir(tmp_path)
    result = intcert("tune", colour_model, "--target", "x86", "--trials", 1, "--timeout", 60)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path)) == ["x86.json", "x86.json.trials"]
    assert "x86.json" in result.stdout
    assert "0 candidates" in result.stdout
    assert all(word in result.stdout for word in ("default us", "best us", "columns=", "blocks="))
    database = json.loads(Path("x86.json").read_text())
    chunk = database["networks"][0]["chunk"]
    entries = [entry["schedule"] for entry in database["layers"]]
    result = intcert("compile", colour_model, "--target", "x86", "--db", "x86.json", "-o", "a.intcert")
    assert result.exit_code == 0, result.output
    assert f"{chunk} samples at once" in result.stdout
    used = [schedule for schedule in schedules(Path("a.intcert")) if schedule]
    assert used
    assert all(schedule in entries for schedule in used)


def test_ctrl_c_leaves_a_run_that_goes_on(colour_model, tmp_path):
    pytest.importorskip("xgboost")
    path, journal = tmp_path / "db.json", tmp_path / "db.json.trials"
    code = "from intcert.cli.main import main; main()"
    command = [sys.executable, "-c", code, "tune", str(colour_model), "--target", "x86", "--db", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (journal.exists() and len(journal.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == f"interrupted: finished measurements are in {journal}; give the same command to go on\n"
    before = journal.read_text().splitlines()
    assert json.loads(path.read_text())["networks"]
    subprocess.run([*command, "--trials", "8"], check=True, capture_output=True)
    assert journal.read_text().splitlines()[: len(before)] == before
    assert json.loads(path.read_text())["layers"]


def test_a_missing_xgboost_is_named(intcert, colour_model, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("intcert.compile.tune")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "xgboost", None)
    result = intcert("tune", colour_model, "--db", tmp_path / "db.json")
    assert result.exit_code == 5
    assert result.stderr.count("\n") == 1
    assert "pip install 'intcert[tune]'" in result.stderr
    assert os.listdir(tmp_path) == []


def test_tune_refuses_what_it_cannot_do(refused, colour_model, tmp_path):
    refused("tune", tmp_path / "notes.txt", saying=("notes.txt", ".pt2"))
    refused("tune", colour_model, "--trials", 0, saying=("--trials",))
    refused("tune", colour_model, "--timeout", 0, saying=("--timeout",))
    refused("tune", colour_model, "--target", "x87", saying=("x87", "did you mean"))
    nowhere = tmp_path / "folder" / "db.json"
    refused("tune", colour_model, "--db", nowhere, saying=(nowhere.parent,))
    (tmp_path / "db.json").write_text("{}")
    pytest.importorskip("xgboost")
    refused("tune", colour_model, "--target", "x86", "--db", tmp_path / "db.json", saying=("not a tuning database",))
    refused("tune", colour_model, "--target", "arm-a72", "--db", tmp_path / "a.json", saying=("does not run arm-a72",))
    assert os.listdir(tmp_path) == ["db.json"]


def test_compile_refuses_a_database_that_does_not_fit(refused, colour_model, tmp_path):
    path, output = tmp_path / "db.json", tmp_path / "a.intcert"
    refused("compile", colour_model, "--db", path, "-o", output, saying=(path, "intcert tune"))
    header = {"format": 1, "target": "x86", "machine": {}, "settings": {}, "layers": [], "networks": []}
    path.write_text(json.dumps(header))
    refused("compile", colour_model, "--target", "arm-a72", "--db", path, "-o", output, saying=("x86", "arm-a72"))
    assert os.listdir(tmp_path) == ["db.json"]
