import csv
import dataclasses
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intcert.runtime.errors import LedgerError
from intcert.runtime.keys import format_key, image_key
from intcert.runtime.ledger import COLUMNS, Ledger, LedgerRow, equal_ledgers, image_sha, read_ledger
from intcert.runtime.run_settings import RunSettings, read_settings, settings_path

RUN_KEY = 0x0123456789ABCDEF
SETTINGS = RunSettings(
    graph="a" * 64,
    noise="b" * 64,
    sigma="0.25",
    alpha="0.001",
    n0=100,
    n=1000,
    rule="cp1",
    dataset="c" * 64,
    versions={"intcert": "0.1.0"},
    options={"skip": 20, "threads": None},
)


def row(idx: int, **changes: object) -> LedgerRow:
    """A row of the run SETTINGS under RUN_KEY."""
    values = {
        "idx": idx,
        "label": 3,
        "predict": 3,
        "time": 1.25,
        "sqradius": 59012,
        "image_sha": "d" * 64,
        "samples": (100, 1000),
        "counts": ((0, 1), (3, 999)),
        "rule": "cp1",
        "alpha": "0.001",
        "sigma": "0.25",
        "key": image_key(RUN_KEY, idx),
        "graph": "a" * 64,
        "noise": "b" * 64,
        "target": "x86-vnni",
        "device": "A CPU @ 2.0 GHz",
    }
    return LedgerRow(**values | changes)


@pytest.fixture
def path(tmp_path) -> Path:
    """A finished ledger of rows 0, 20 and 40."""
    path = tmp_path / "run.tsv"
    with Ledger(path, SETTINGS, run_key=RUN_KEY) as ledger:
        for idx in (0, 20, 40):
            ledger.append(row(idx))
    return path


def refusal(path: Path, settings: RunSettings = SETTINGS, **arguments: object) -> str:
    """The message with which Ledger refuses; the folder must be as before."""
    before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(LedgerError) as caught:
        Ledger(path, settings, **arguments)
    assert {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def test_the_line_of_a_row():
    cells = row(20).to_line().split("\t")
    assert dict(zip(COLUMNS, cells, strict=True)) == {
        "idx": "20",
        "label": "3",
        "predict": "3",
        "radius": "0.952642",
        "correct": "1",
        "time": "1.250",
        "sqradius": "59012",
        "image_sha": "d" * 64,
        "samples": "100+1000",
        "counts": "0:1,3:999",
        "rule": "cp1",
        "alpha": "0.001",
        "sigma": "0.25",
        "key": format_key(image_key(RUN_KEY, 20)),
        "graph": "a" * 64,
        "noise": "b" * 64,
        "target": "x86-vnni",
        "device": "A CPU @ 2.0 GHz",
    }


def test_an_abstention_has_radius_zero_and_is_not_correct():
    abstained = row(0, predict=-1, sqradius=-1)
    assert (abstained.radius, abstained.correct) == ("0.000000", False)
    certified = row(0, sqradius=0)
    assert (certified.radius, certified.correct) == ("0.000000", True)


def test_a_requested_radius_is_shown_as_requested():
    assert row(0, rule="kt:0.5", sqradius=16256).radius == "0.5"
    assert row(0, rule="cp1", sqradius=16256).radius == "0.499996"
    assert row(0, rule="kt:0.5", predict=-1, sqradius=-1).radius == "0.000000"


@given(st.integers(0, 10**9))
def test_radius_is_the_largest_six_decimals_within_the_certificate(m):
    radius = Decimal(row(0, sqradius=m).radius)
    assert (255 * radius) ** 2 <= m < (255 * (radius + Decimal("0.000001"))) ** 2


hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
decimals = st.integers(1, 999).map(lambda thousandths: f"0.{thousandths:03}".rstrip("0"))


@st.composite
def ledger_rows(draw) -> LedgerRow:
    counts = draw(st.dictionaries(st.integers(0, 999), st.integers(1, 10**6), min_size=1, max_size=5))
    sqradius = draw(st.integers(-1, 10**6))
    return LedgerRow(
        idx=draw(st.integers(0, 10**9)),
        label=draw(st.integers(0, 999)),
        predict=draw(st.integers(0, 999)) if sqradius >= 0 else -1,
        time=draw(st.integers(0, 10**9)) / 1000,
        sqradius=sqradius,
        image_sha=draw(hashes),
        samples=(draw(st.integers(1, 1000)), sum(counts.values())),
        counts=tuple(sorted(counts.items())),
        rule=draw(st.sampled_from(["cp1", "cp2", "kt:0.5", "kt:1"])),
        alpha=draw(decimals),
        sigma=draw(decimals),
        key=draw(st.integers(0, 2**64 - 1)),
        graph=draw(hashes),
        noise=draw(hashes),
        target=draw(st.sampled_from(["x86", "arm-a72"])),
        device=draw(st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp", "Cs"]), max_size=20)),
    )


@given(ledger_rows())
def test_rows_round_trip(original):
    assert LedgerRow.from_line(original.to_line()) == original


def test_a_device_name_cannot_break_the_table():
    line = row(0, device="a\tb\nc\x85d\u2028e\rf").to_line()
    assert line.splitlines() == [line]
    assert LedgerRow.from_line(line).device == "a b c d e f"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("idx", "x"),
        ("idx", "020"),
        ("idx", "+20"),
        ("label", "3.0"),
        ("radius", "0.952643"),
        ("correct", "0"),
        ("time", "1.25"),
        ("time", "nan"),
        ("sqradius", "-1"),
        ("predict", "-1"),
        ("image_sha", "d" * 63),
        ("samples", "1100"),
        ("samples", "100+1001"),
        ("counts", ""),
        ("counts", "3:999,0:1,"),
        ("counts", "3:999"),
        ("key", "0"),
        ("graph", "A" * 64),
        ("noise", ""),
    ],
)
def test_a_damaged_cell_is_refused(column, value):
    cells = dict(zip(COLUMNS, row(20).to_line().split("\t"), strict=True)) | {column: value}
    with pytest.raises(ValueError, match=r"."):
        LedgerRow.from_line("\t".join(cells.values()))


def test_a_line_with_a_column_too_many_or_too_few_is_refused():
    with pytest.raises(ValueError, match="19 columns instead of 18"):
        LedgerRow.from_line(row(0).to_line() + "\t")
    with pytest.raises(ValueError, match="17 columns instead of 18"):
        LedgerRow.from_line(row(0).to_line().rpartition("\t")[0])


def test_image_sha_covers_shape_and_pixels():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert image_sha(image) == hashlib.sha256(b"2 2 3\n" + bytes(range(12))).hexdigest()
    assert image_sha(image[::-1]) == hashlib.sha256(b"2 2 3\n" + bytes([*range(6, 12), *range(6)])).hexdigest()
    assert image_sha(image.reshape(4, 1, 3)) != image_sha(image)


def test_equal_ledgers_ignores_order_and_machine_only():
    rows = [row(0), row(20), row(40)]
    elsewhere = [row(idx, time=9.0, target="arm", device="board") for idx in (40, 0, 20)]
    assert equal_ledgers(rows, elsewhere)
    assert not equal_ledgers(rows, elsewhere[:2])
    ignored = {"idx", "time", "target", "device"}
    for changes in (
        {"label": 4},
        {"predict": 4},
        {"sqradius": 59011},
        {"image_sha": "0" * 64},
        {"samples": (101, 1000)},
        {"counts": ((0, 2), (3, 998))},
        {"rule": "cp2"},
        {"alpha": "0.01"},
        {"sigma": "0.5"},
        {"key": 0},
        {"graph": "0" * 64},
        {"noise": "0" * 64},
    ):
        assert not equal_ledgers(rows, [row(0, **changes), row(20), row(40)]), changes
        ignored |= changes.keys()
    assert ignored == {field.name for field in dataclasses.fields(LedgerRow)}


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_a_ledger_is_a_table_with_cohens_columns_first(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "\t".join(COLUMNS)
    assert lines[0].startswith("idx\tlabel\tpredict\tradius\tcorrect\ttime\t")
    assert lines[1:] == [row(idx).to_line() for idx in (0, 20, 40)]
    assert read_ledger(path) == [row(0), row(20), row(40)]


def test_cohens_analysis_reads_it(path):
    """Cohen et al. read tab-separated columns by name and average ``correct & (radius >= r)``."""
    with Ledger(path, SETTINGS, resume=True) as ledger:
        ledger.append(row(60, predict=-1, sqradius=-1))
    with open(path, newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [int(line["idx"]) for line in table] == [0, 20, 40, 60]
    assert [int(line["correct"]) & (float(line["radius"]) >= 0.95) for line in table] == [1, 1, 1, 0]
    assert [float(line["time"]) for line in table] == [1.25] * 4


def test_settings_lie_beside_it_for_the_owner_only(path):
    assert settings_path(path) == path.with_name("run.json")
    assert read_settings(settings_path(path)) == (SETTINGS, RUN_KEY)
    assert stat.S_IMODE(settings_path(path).stat().st_mode) == 0o600
    assert format_key(RUN_KEY) not in path.read_text()


@pytest.mark.parametrize(
    ("ledger", "beside"), [("a.tsv", "a.json"), ("sigma_0.25", "sigma_0.25.json"), ("a.json", "a.json.json")]
)
def test_settings_path(ledger, beside):
    assert settings_path(f"x/{ledger}") == Path("x", beside)


def test_settings_are_there_before_the_first_row(tmp_path):
    with Ledger(tmp_path / "run.tsv", SETTINGS, run_key=RUN_KEY) as ledger:
        assert read_settings(tmp_path / "run.json") == (SETTINGS, RUN_KEY)
        assert read_ledger(tmp_path / "run.tsv") == ledger.rows == []


def test_run_keys_are_drawn_afresh(tmp_path):
    keys = set()
    for name in "abc":
        with Ledger(tmp_path / name, SETTINGS) as ledger:
            keys.add(ledger.run_key)
    assert len(keys) == 3


def test_a_row_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr("os.fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), real(descriptor)))
    with Ledger(tmp_path / "run.tsv", SETTINGS, run_key=RUN_KEY) as ledger:
        ledger.append(row(0))
        assert synced[-1] == (tmp_path / "run.tsv").stat().st_size
        assert read_ledger(tmp_path / "run.tsv") == [row(0)]


def test_resume_continues(path):
    with Ledger(path, SETTINGS, resume=True) as ledger:
        assert ledger.run_key == RUN_KEY
        assert ledger.rows == [row(0), row(20), row(40)]
        assert 20 in ledger
        assert 21 not in ledger
        ledger.append(row(60))
        assert 60 in ledger
    assert read_ledger(path) == [row(0), row(20), row(40), row(60)]


def test_resume_begins_where_there_is_nothing(tmp_path):
    with Ledger(tmp_path / "run.tsv", SETTINGS, resume=True, run_key=RUN_KEY) as ledger:
        ledger.append(row(0))
    assert read_ledger(tmp_path / "run.tsv") == [row(0)]


def test_versions_and_options_may_change_on_resume(path):
    changed = dataclasses.replace(SETTINGS, versions={"intcert": "0.2.0"}, options={})
    with Ledger(path, changed, resume=True) as ledger:
        assert len(ledger.rows) == 3
    assert read_settings(settings_path(path)) == (SETTINGS, RUN_KEY)


def test_a_torn_line_of_any_length_is_repaired(path):
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Ledger(path, SETTINGS, resume=True) as ledger:
            kept = ledger.rows
        expected = whole[:length].count(b"\n")
        assert kept == [row(20 * i) for i in range(max(expected - 1, 0))]
        assert path.read_bytes() == b"".join(lines[: max(expected, 1)])


def test_read_leaves_out_a_torn_line_and_changes_nothing(path):
    torn = path.read_bytes() + row(60).to_line().encode()
    path.write_bytes(torn)
    assert read_ledger(path) == [row(0), row(20), row(40)]
    assert path.read_bytes() == torn


def test_an_existing_ledger_is_not_overwritten(path):
    assert refusal(path) == f"{path} exists; continue it with --resume, or give another output name"
    path.unlink()
    assert refusal(path).startswith(f"{settings_path(path)} exists; ")


@pytest.mark.parametrize("name", ["graph", "noise", "sigma", "alpha", "n0", "n", "rule", "dataset"])
def test_resume_refuses_another_run(path, name):
    other = dataclasses.replace(SETTINGS, **{name: 7 if name in ("n0", "n") else "0.5"})
    assert f"is of a run with another {name};" in refusal(path, other, resume=True)


def test_resume_names_everything_that_differs(path):
    other = dataclasses.replace(SETTINGS, alpha="0.01", rule="cp2")
    message = refusal(path, other, resume=True, run_key=RUN_KEY + 1)
    assert message == (
        f"{path} is of a run with another alpha, rule, seed; resume with the same settings, or give another output name"
    )


def test_resume_accepts_the_same_seed(path):
    with Ledger(path, SETTINGS, resume=True, run_key=RUN_KEY) as ledger:
        assert ledger.run_key == RUN_KEY


def test_resume_needs_the_settings(path):
    settings_path(path).unlink()
    assert "has rows but run.json is missing" in refusal(path, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: None,
        lambda content: [],
        lambda content: content | {"format": 2},
        lambda content: content | {"run_key": "1"},
        lambda content: content | {"n": "1000"},
        lambda content: content | {"extra": 1},
        lambda content: {name: value for name, value in content.items() if name != "rule"},
    ],
)
def test_resume_refuses_damaged_settings(path, damage):
    file = settings_path(path)
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    assert "run.json is damaged or not a run's settings" in refusal(path, resume=True)


def test_resume_refuses_settings_that_are_no_json(path):
    settings_path(path).write_bytes(b"\xff{")
    assert "run.json is damaged" in refusal(path, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"graph": "0" * 64},
        {"noise": "0" * 64},
        {"sigma": "0.5"},
        {"alpha": "0.01"},
        {"rule": "cp2"},
        {"samples": (99, 1000)},
        {"samples": (100, 1001), "counts": ((3, 1001),)},
        {"key": 0},
    ],
)
def test_resume_refuses_rows_of_another_run(path, changes):
    path.write_text(path.read_text() + row(60, **changes).to_line() + "\n")
    assert "row 60 of" in refusal(path, resume=True)


def test_resume_refuses_files_that_are_no_ledger(tmp_path):
    path = tmp_path / "notes.txt"
    for content, reason in [
        ("my notes", "is not a ledger;"),
        ("my notes\n", "has rows but notes.txt.json is missing"),
        ("idx\tlabel\n", "has rows but"),
    ]:
        path.write_text(content)
        assert reason in refusal(path, resume=True)


def test_damaged_ledgers_are_refused_with_the_line(path):
    good = path.read_text()
    lines = good.splitlines(keepends=True)
    for content, reason in [
        ("".join([lines[0], lines[1][5:], lines[2]]), "line 2 is damaged"),
        ("".join([*lines, lines[1]]), "line 5 repeats row 0"),
        ("".join(lines[1:]), "is not a ledger: its first line is"),
        ("".join([*lines[:2], "\n", lines[2]]), "line 3 is damaged"),
    ]:
        path.write_text(content)
        assert reason in refusal(path, resume=True)
        with pytest.raises(LedgerError, match=reason):
            read_ledger(path)
    path.write_bytes(lines[0].encode() + b"\xff\n")
    assert "is not text" in refusal(path, resume=True)


def test_read_ledger_of_nothing(tmp_path):
    with pytest.raises(LedgerError, match="does not exist"):
        read_ledger(tmp_path / "none.tsv")
    with pytest.raises(LedgerError, match="cannot be read"):
        read_ledger(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(LedgerError, match="its first line is ''"):
        read_ledger(tmp_path / "empty")


def test_a_row_is_not_repeated(path):
    with Ledger(path, SETTINGS, resume=True) as ledger, pytest.raises(LedgerError, match="has a row 20 already"):
        ledger.append(row(20))
    assert read_ledger(path) == [row(0), row(20), row(40)]


def test_an_unwritable_path(tmp_path):
    assert "cannot be written (No such file or directory)" in refusal_of_new(tmp_path / "none" / "run.tsv")
    (tmp_path / "file").touch()
    assert "cannot be written (Not a directory)" in refusal_of_new(tmp_path / "file" / "run.tsv")
    (tmp_path / "folder.tsv").mkdir()
    assert "folder.tsv exists" in refusal_of_new(tmp_path / "folder.tsv")
    with pytest.raises(LedgerError, match="Is a directory"):
        Ledger(tmp_path / "folder.tsv", SETTINGS, resume=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.tsv"]


def refusal_of_new(path: Path) -> str:
    with pytest.raises(LedgerError) as caught:
        Ledger(path, SETTINGS)
    return str(caught.value)


def test_settings_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    def fail(_: object, path: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert "cannot be written (No space left on device)" in refusal_of_new(tmp_path / "run.tsv")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_at_the_start_leaves_nothing(tmp_path, monkeypatch):
    def fail(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", fail)
    assert "cannot be written (No space left on device)" in refusal_of_new(tmp_path / "run.tsv")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_the_rows_before(path):
    """A file size limit makes the operating system cut a row short, as a full disk does."""
    size = path.stat().st_size
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger(path, SETTINGS, resume=True) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        try:
            with pytest.raises(LedgerError, match=r"cannot be written \(File too large\)"):
                ledger.append(row(60))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        assert 60 not in ledger
        ledger.append(row(60))
    assert read_ledger(path)[-1] == row(60)


def test_two_processes_cannot_append(path):
    program = (
        "import sys, time\n"
        "from intcert.runtime.ledger import Ledger\n"
        "from intcert.runtime.run_settings import read_settings\n"
        "settings, _ = read_settings(sys.argv[2])\n"
        "with Ledger(sys.argv[1], settings, resume=True):\n"
        "    print('open', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(settings_path(path))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "open\n"
        assert "is being written by another process" in refusal(path, resume=True)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    with Ledger(path, SETTINGS, resume=True) as ledger:
        assert len(ledger.rows) == 3


def test_one_process_cannot_open_it_twice(path):
    with Ledger(path, SETTINGS, resume=True):
        assert "is being written by another process" in refusal(path, resume=True)


def test_close_twice(path):
    ledger = Ledger(path, SETTINGS, resume=True)
    ledger.close()
    ledger.close()
