"""``intcert certify``: what it writes and prints, what it refuses, and how it survives being stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intcert.runtime import CertificateParameters, certificate_table, equal_ledgers, read_artifact, read_ledger
from intcert.runtime import write_artifact as write

SAMPLES = 100_000  # long enough, per image, to be stopped in the middle of a run


def test_certify_writes_a_ledger_and_a_summary(intcert, ledger, colour_artifact):
    rows = read_ledger(ledger)
    artifact = read_artifact(colour_artifact)
    table = certificate_table(CertificateParameters(sigma="0.25", dimension=192, n=1000), artifact.law)
    assert [row.idx for row in rows] == list(range(7))
    assert [row.label for row in rows] == [0, 0, 1, 1, 2, 2, 2]
    for row in rows[:6]:  # clear colours: every sample says the same
        assert row.counts == ((row.label, 1000),)
        assert row.sqradius == table.m(1000)
    assert rows[6].predict == -1
    assert ledger.with_suffix(".json").exists()


def test_the_summary_counts_what_the_ledger_holds(intcert, ledger, colour_artifact, colour_folder):
    """A resumed run with nothing left to do prints the summary of its rows."""
    words = ("certify", colour_artifact, "--data", f"folder:{colour_folder}", "--n", 1000, "-o", ledger, "--resume")
    result = intcert(*words)
    assert result.exit_code == 0, result.output
    printed = {line[:26].strip(): line[26:].strip() for line in result.stdout.splitlines()[1:]}
    radius = float(read_ledger(ledger)[0].radius)
    assert 0.5 < radius < 0.75
    assert printed == {
        "images": "7",
        "certified at radius 0": "6 of 7 = 0.857",
        "certified at radius 0.25": "6 of 7 = 0.857",
        "certified at radius 0.5": "6 of 7 = 0.857",
        "certified at radius 0.75": "0 of 7 = 0.000",
        "abstained": "1 of 7 = 0.143",
        "accuracy where it answered": "6 of 6 = 1.000",
        "average certified radius": f"{6 * radius / 7:.3f}",
        "samples drawn": "7,700",
    }


def test_a_seed_repeats_a_run_whatever_the_threads(intcert, colour_artifact, colour_folder, tmp_path):
    words = ("certify", colour_artifact, "--data", f"folder:{colour_folder}", "--n", 1000, "--seed", 5)
    ledgers = [tmp_path / "one.tsv", tmp_path / "two.tsv"]
    for threads, path in enumerate(ledgers, start=1):
        assert intcert(*words, "--threads", threads, "-o", path).exit_code == 0
    assert equal_ledgers(*map(read_ledger, ledgers))


def test_skip_and_max_choose_images(intcert, colour_artifact, colour_folder, tmp_path):
    path = tmp_path / "run.tsv"
    words = ("certify", colour_artifact, "--data", f"folder:{colour_folder}", "--n", 100)
    assert intcert(*words, "--skip", 2, "--max", 5, "-o", path).exit_code == 0
    assert [row.idx for row in read_ledger(path)] == [0, 2, 4]


@pytest.mark.parametrize(("words", "rule"), [(("--rule", "cp2"), "cp2"), (("--radius", "0.250"), "kt:0.25")])
def test_the_other_rules(intcert, colour_artifact, colour_folder, tmp_path, words, rule):
    path = tmp_path / "run.tsv"
    result = intcert(
        "certify", colour_artifact, "--data", f"folder:{colour_folder}", "--n", 2000, *words, "-o", path, "--max", 1
    )
    assert result.exit_code == 0, result.output
    (row,) = read_ledger(path)
    assert row.rule == rule
    assert row.predict == 0
    assert row.samples[1] < 2000 if rule == "kt:0.25" else row.samples[1] == 2000


def test_an_embedded_table_is_the_one_used(intcert, colour_model, colour_folder, tmp_path, monkeypatch):
    """With no cache to write and none to read, and a table for other samples beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    artifact = tmp_path / "m.intcert"
    assert intcert("compile", colour_model, "--n", 500, "--alpha", "0.01", "-o", artifact).exit_code == 0
    for n in (500, 400):
        words = ("--n", n, "--alpha", "0.01", "--max", 1, "-o", tmp_path / f"{n}.tsv")
        assert intcert("certify", artifact, "--data", f"folder:{colour_folder}", *words).exit_code == 0
        assert read_ledger(tmp_path / f"{n}.tsv")[0].samples == (100, n)


def test_an_existing_ledger_is_kept(refused, ledger, colour_artifact, colour_folder):
    before = ledger.read_bytes()
    words = ("certify", colour_artifact, "--data", f"folder:{colour_folder}", "-o", ledger)
    refused(*words, "--n", 1000, saying=(ledger, "--resume"))
    refused(*words, "--n", 999, "--resume", saying=("another n",))
    refused(*words, "--n", 1000, "--alpha", "0.01", "--resume", saying=("another alpha",))
    refused(*words, "--n", 1000, "--seed", 1, "--resume", saying=("another seed",))
    assert ledger.read_bytes() == before


def test_parameters_that_define_no_test_are_refused(refused, colour_artifact, colour_folder, tmp_path):
    words = ("certify", colour_artifact, "--data", f"folder:{colour_folder}", "-o", tmp_path / "run.tsv")
    for extra, text in (
        (("--alpha", "0.7"), "'0.7'"),
        (("--alpha", "0"), "'0'"),
        (("--n", 0), "--n"),
        (("--n", 10**9), str(10**9)),
        (("--radius", "-1"), "-1"),
        (("--radius", "0.5", "--rule", "cp2"), "--rule"),
        (("--radius", "3"), "3"),
        (("--seed", "secret"), "'secret'"),
        (("--threads", 0), "--threads"),
    ):
        refused(*words, *extra, saying=(text,))
    assert os.listdir(tmp_path) == []


def test_unusable_data_is_refused(refused, colour_artifact, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    no_images = tmp_path / "no_images"
    for name in ("blue", "green", "red"):
        (no_images / name).mkdir(parents=True)
    output = tmp_path / "run.tsv"
    for spec, text in (
        (f"folder:{empty}", empty),
        (f"folder:{no_images}", no_images),
        (f"folder:{tmp_path / 'missing'}", "missing"),
        (f"cifar10:{empty}", empty),
        (f"mnist:{empty}", empty),
        (f"npz:{tmp_path / 'missing.npz'}", "missing.npz"),
        ("imagenet:/data", "'imagenet:/data'"),
    ):
        refused("certify", colour_artifact, "--data", spec, "-o", output, saying=(text,))
    assert not output.exists()


def test_an_unreadable_image_stops_the_run_and_keeps_the_rows(refused, colour_artifact, colour_folder, tmp_path):
    folder = tmp_path / "damaged"
    for name in ("blue", "green", "red"):
        (folder / name).mkdir(parents=True)
    image = (colour_folder / "blue" / "0.png").read_bytes()
    (folder / "blue" / "0.png").write_bytes(image)
    (folder / "blue" / "1.png").write_bytes(image[:60])
    output = tmp_path / "run.tsv"
    refused("certify", colour_artifact, "--data", f"folder:{folder}", "--n", 100, "-o", output, saying=("1.png",))
    assert [row.idx for row in read_ledger(output)] == [0]


def test_images_of_another_size_are_refused(refused, colour_artifact, colour_folder, tmp_path):
    np.savez(tmp_path / "large.npz", images=np.zeros((1, 9, 8, 3), np.uint8), labels=np.zeros(1, np.int64))
    words = ("certify", colour_artifact, "-o", tmp_path / "run.tsv", "--data")
    refused(*words, f"npz:{tmp_path / 'large.npz'}", saying=("9 x 8 x 3", "8 x 8 x 3"))
    Image.new("RGB", (9, 8)).save(tmp_path / "large.png")
    refused("predict", colour_artifact, "--images", tmp_path / "large.png", saying=("8 x 9 x 3", "8 x 8 x 3"))


def test_another_machine_s_artifact_is_refused(refused, colour_artifact, colour_folder, tmp_path):
    artifact = read_artifact(colour_artifact)
    flags = [*artifact.manifest.target_facts["cpu_flags"], "warp_drive"]
    other = replace(artifact.manifest, target_facts={"cpu_flags": flags})
    path = tmp_path / "other.intcert"
    write(path, other, artifact.members)
    words = ("--data", f"folder:{colour_folder}")
    refused("certify", path, *words, "-o", tmp_path / "run.tsv", saying=("warp_drive",))
    refused("eval", path, *words, saying=("warp_drive",))
    assert not (tmp_path / "run.tsv").exists()


def test_an_unwritable_output_is_refused(refused, colour_artifact, colour_folder, tmp_path):
    words = ("certify", colour_artifact, "--data", f"folder:{colour_folder}", "-o")
    refused(*words, tmp_path / "nowhere" / "run.tsv", saying=("nowhere",))
    refused(*words, tmp_path, saying=(tmp_path,))
    refused(*words, "/proc/run.tsv", saying=("/proc/run.tsv",))


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_resumes_to_the_same_ledger(intcert, colour_artifact, colour_folder, tmp_path, stop, code):
    words = ["certify", str(colour_artifact), "--data", f"folder:{colour_folder}", "--n", str(SAMPLES), "--seed", "7"]
    whole, stopped = tmp_path / "whole.tsv", tmp_path / "stopped.tsv"
    process = subprocess.Popen(
        [sys.executable, "-c", "from intcert.cli.main import main; main()", *words, "-o", str(stopped)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    # The signal may hit the very writing of a row, which then is taken back: one row before it is there for certain.
    while row_count(stopped) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(stop)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == code, complaints
    done = len(read_ledger(stopped))
    assert 1 <= done < 7
    if stop == signal.SIGINT:
        (line,) = complaints.splitlines()
        assert f"{done} images" in line
        assert "--resume" in line

    assert intcert(*words, "-o", stopped, "--resume").exit_code == 0
    assert intcert(*words, "-o", whole).exit_code == 0
    assert len(read_ledger(stopped)) == 7
    assert equal_ledgers(read_ledger(stopped), read_ledger(whole))


def row_count(ledger: Path) -> int:
    """Finished rows of a ledger that another process is writing."""
    return ledger.read_bytes().count(b"\n") - 1 if ledger.exists() else 0
