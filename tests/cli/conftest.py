"""Running commands in tests, and judging how they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from intcert.cli.main import main

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    """Tests share no certificate tables with the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def intcert() -> Command:
    """Runs a command line in this process; a defect (an exception other than an exit) fails the test."""

    def run(*words: object) -> Result:
        result = CliRunner().invoke(main, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def refused(intcert: Command) -> Command:
    """Runs a command line that must be refused: exit code 4 and one line on stderr that holds all the given words."""

    def run(*words: object, saying: tuple[object, ...] = ()) -> Result:
        result = intcert(*words)
        lines = result.stderr.splitlines()
        assert result.exit_code == 4, result.output
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: "), lines[0]
        for word in saying:
            assert str(word) in lines[0], lines[0]
        return result

    return run


@pytest.fixture
def ledger(intcert: Command, colour_artifact: Path, colour_folder: Path, tmp_path: Path) -> Path:
    """A finished run on the colour images, 1,000 samples each."""
    path = tmp_path / "run.tsv"
    result = intcert("certify", colour_artifact, "--data", f"folder:{colour_folder}", "--n", 1000, "-o", path)
    assert result.exit_code == 0, result.output
    return path
