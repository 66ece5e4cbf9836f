"""Every finished measurement of a tuning run, on disk at once, so that a run that was killed goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Self

from intcert.compile.kernels import Schedule
from intcert.runtime.errors import DatabaseError


@dataclass(frozen=True)
class Trial:
    """One candidate. ratio: its time over the default's, measured in turns; or error: why it has none."""

    ratio: float | None
    error: str | None = None


def kernels_digest() -> str:
    """SHA-256 in hex of the source of all kernels: measurements of other kernels say nothing about these."""
    with resources.as_file(resources.files("intcert.compile").joinpath("kernels")) as folder:
        contents = [file.read_bytes() for file in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


class Journal:
    """A file with a header line and a JSON line a trial. A context manager."""

    def __init__(self, path: Path, header: dict[str, object]) -> None:
        """Open or begin a journal; a torn last line is dropped.

        Raises DatabaseError: the file is none, was begun under another header, or cannot be written.
        """
        self._trials: dict[str, dict[str, Trial]] = {}
        first = _line(header)
        try:
            content = path.read_bytes() if path.exists() else b""
            kept = content[: content.rfind(b"\n") + 1]
            lines = kept.decode().splitlines(keepends=True)
            if lines and lines[0] != first:
                raise DatabaseError(
                    f"{path} holds measurements of another processor, target or version of the kernels; "
                    "delete it to measure anew, or give another --db"
                )
            for line in lines[1:]:
                self._take(json.loads(line))
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(len(kept))
            self._file.seek(len(kept))
            if not lines:
                self._write(first)
        except OSError as error:
            raise DatabaseError(f"{path} cannot be written ({error.strerror}); give another --db") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DatabaseError(
                f"{path} is not a journal of measurements ({error}); delete it, or give another --db"
            ) from None

    def trials(self, workload: str) -> dict[str, Trial]:
        """Trials of a workload by ``schedule_key``."""
        return self._trials.get(workload, {})

    def record(self, workload: str, schedule: Schedule, trial: Trial) -> None:
        """Add a trial; a later one of the same schedule replaces the earlier."""
        entry = {"workload": json.loads(workload), "schedule": asdict(schedule), **asdict(trial)}
        self._write(_line(entry))
        self._take(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _take(self, entry: dict[str, object]) -> None:
        known = self._trials.setdefault(json.dumps(entry["workload"], sort_keys=True), {})
        known[json.dumps(entry["schedule"], sort_keys=True)] = Trial(entry["ratio"], entry["error"])

    def _write(self, line: str) -> None:
        self._file.write(line.encode())
        self._file.flush()


def schedule_key(schedule: Schedule) -> str:
    """Canonical JSON of a schedule."""
    return json.dumps(asdict(schedule), sort_keys=True)


def _line(entry: dict[str, object]) -> str:
    return json.dumps(entry, sort_keys=True) + "\n"
