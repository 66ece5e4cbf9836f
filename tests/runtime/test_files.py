"""Files that are written whole."""

from __future__ import annotations

import os

import pytest

from intcert.runtime.files import write_whole


def test_a_file_is_replaced_and_has_its_permissions(tmp_path):
    path = tmp_path / "a"
    for data, mode in ((b"first", 0o644), (b"second", 0o600)):
        write_whole(path, data, mode)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == mode
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(error, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(type(error)):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
