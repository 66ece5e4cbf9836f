from pathlib import Path

import pytest

from intcert.runtime.cohen import CohenRow, read_cohen, write_cohen
from intcert.runtime.errors import LedgerError

LOGS = Path(__file__).parents[3] / "shared" / "data" / "cohen2019"
ROWS = [CohenRow(0, 3, 3, "0.378", 1, "15.4"), CohenRow(20, 7, -1, "0.0", 0, "0:00:14.206886")]
TEXT = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.378\t1\t15.4\n20\t7\t-1\t0.0\t0\t0:00:14.206886\n"


@pytest.mark.skipif(not LOGS.is_dir(), reason="the published logs of Cohen et al. are not on this machine")
def test_the_published_logs_come_back_byte_for_byte(tmp_path):
    logs = [file for file in LOGS.rglob("*") if file.is_file()]
    assert len(logs) == 7
    for log in logs:
        rows = read_cohen(log)
        assert len(rows) == 500
        write_cohen(tmp_path / "copy", rows)
        assert (tmp_path / "copy").read_bytes() == log.read_bytes()


def test_both_notations_of_time(tmp_path):
    write_cohen(tmp_path / "log", ROWS)
    assert (tmp_path / "log").read_text() == TEXT
    assert read_cohen(tmp_path / "log") == ROWS


def test_a_row_being_written_is_left_out(tmp_path):
    (tmp_path / "log").write_text(TEXT + "40\t4\t4\t0.3")
    assert read_cohen(tmp_path / "log") == ROWS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its first line is ''"),
        (b"idx,label\n", "its first line is 'idx,label'"),
        (b"\xff\xfe", "it is not text"),
        (TEXT.encode() + b"40\t4\t4\t0.3\t1\n", "line 4 is damaged"),
        (TEXT.encode() + b"40\t4\t4\tlarge\t1\t15\n", "line 4 is damaged"),
        (TEXT.encode() + b"40.0\t4\t4\t0.3\t1\t15\n", "line 4 is damaged"),
        (TEXT.encode() + b"040\t4\t4\t0.3\t1\t15\n", "line 4 has a number that is not in its usual form"),
    ],
)
def test_what_is_no_log(tmp_path, content, reason):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(LedgerError, match=reason):
        read_cohen(tmp_path / "log")


def test_missing_and_unwritable(tmp_path):
    with pytest.raises(LedgerError, match=r"none cannot be read \(No such file"):
        read_cohen(tmp_path / "none")
    with pytest.raises(LedgerError, match=r"log cannot be written \(No such file"):
        write_cohen(tmp_path / "none" / "log", ROWS)
    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerError, match="cannot be written"):
        write_cohen(tmp_path / "folder", ROWS)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
