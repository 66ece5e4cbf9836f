"""The ledger of a certification run: one tab-separated row an image.

UTF-8 text: a header line with the names of ``COLUMNS``, then rows in the order in which images were finished; no
comments, no quotes. Settings and run key lie in a JSON file beside it (``run_settings``).

A row is on the disk before the next image begins, so a run may die at any moment and be resumed: at worst the last line
is torn, and is cut off.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from intcert.runtime.errors import LedgerError
from intcert.runtime.files import sync_folder
from intcert.runtime.keys import format_key, image_key, new_run_key, parse_key
from intcert.runtime.run_settings import RunSettings, read_settings, settings_path, write_settings
from intcert.runtime.smoothing import ABSTAIN, radius_string

# Cohen et al.'s six columns come first: their tools find them by name and ignore the rest.
COLUMNS = (
    *("idx", "label", "predict", "radius", "correct", "time"),
    *("sqradius", "image_sha", "samples", "counts", "rule", "alpha", "sigma", "key"),
    *("graph", "noise", "target", "device"),
)
HEADER = "\t".join(COLUMNS)

_DECIMAL = re.compile(r"[0-9]+\.[0-9]{3}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One certified image.

    Attributes:
        idx: position in the whole data set.
        label, predict: classes; predict is -1 where the certification abstained.
        time: seconds.
        sqradius: the certificate m, a squared l2 radius in pixel steps; -1 where it abstained.
        image_sha: see ``image_sha``.
        samples: how many selection and estimation samples.
        counts: (class, count) pairs of the estimation samples, ascending, without zeros.
        rule: ``cp1``, ``cp2`` or ``kt:R``.
        alpha, sigma: exact decimals; sigma on the [0, 1] scale.
        key: the image's 64-bit noise key.
        graph, noise: SHA-256 in hex of the integer graph and of the noise law.
        target, device: where it ran.
    """

    idx: int
    label: int
    predict: int
    time: float
    sqradius: int
    image_sha: str
    samples: tuple[int, int]
    counts: tuple[tuple[int, int], ...]
    rule: str
    alpha: str
    sigma: str
    key: int
    graph: str
    noise: str
    target: str
    device: str

    @property
    def correct(self) -> bool:
        """Whether the certified class is the label."""
        return self.predict == self.label

    @property
    def radius(self) -> str:
        """The certified l2 radius on the [0, 1] scale, for display: rounded down to 6 decimals, or R of rule ``kt:R``.

        Comparing it with a radius loses images; compare ``sqradius`` (``smoothing.certified_at``).
        """
        kind, _, requested = self.rule.partition(":")
        return requested if kind == "kt" and self.sqradius != ABSTAIN else radius_string(self.sqradius)

    @property
    def outcome(self) -> "LedgerRow":
        """The row without what may differ from device to device: time, target and device."""
        return replace(self, time=0.0, target="", device="")

    def to_line(self) -> str:
        """The row as a line, without its newline."""
        values = {
            **{name: str(getattr(self, name)) for name in COLUMNS},
            "correct": str(int(self.correct)),
            "time": f"{self.time:.3f}",
            "samples": "+".join(map(str, self.samples)),
            "counts": ",".join(f"{label}:{count}" for label, count in self.counts),
            "key": format_key(self.key),
            "target": _CONTROL.sub(" ", self.target),
            "device": _CONTROL.sub(" ", self.device),
        }
        return "\t".join(values.values())

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read what ``to_line`` wrote.

        Raises:
            ValueError: the line is anything else, or contradicts itself.
        """
        cells = line.split("\t")
        if len(cells) != len(COLUMNS):
            raise ValueError(f"{len(cells)} columns instead of {len(COLUMNS)}")
        text = dict(zip(COLUMNS, cells, strict=True))
        if _DECIMAL.fullmatch(text["time"]) is None:
            raise ValueError(f"time {text['time']!r} is not seconds with 3 decimals")
        for name in ("image_sha", "graph", "noise"):
            if _HASH.fullmatch(text[name]) is None:
                raise ValueError(f"{name} {text[name]!r} is not a SHA-256 in hex")
        selection, estimation = text["samples"].split("+")
        row = cls(
            **{name: int(text[name]) for name in ("idx", "label", "predict", "sqradius")},
            **{name: text[name] for name in ("image_sha", "rule", "alpha", "sigma", "graph", "noise")},
            time=float(text["time"]),
            samples=(int(selection), int(estimation)),
            counts=tuple(_parse_count(pair) for pair in text["counts"].split(",")),
            key=parse_key(text["key"]),
            target=text["target"],
            device=text["device"],
        )
        # Redundant columns and second spellings of a number would let two equal ledgers look different.
        if row.to_line() != line:
            raise ValueError("the columns contradict each other, or a number is not in its usual form")
        if (row.predict == ABSTAIN) != (row.sqradius == ABSTAIN):
            raise ValueError(f"class {row.predict} does not go with squared radius {row.sqradius}")
        if sum(count for _, count in row.counts) != row.samples[1]:
            raise ValueError(f"the counts do not add up to {row.samples[1]} samples")
        return row


class Ledger:
    """A ledger open for appending, locked against other processes. A context manager.

    Attributes:
        path: the ledger.
        settings: what the run computes.
        run_key: its secret 64-bit key; a resumed run keeps the one it began with.
        rows: rows in file order; ``idx in ledger`` asks for one.
    """

    def __init__(
        self, path: str | Path, settings: RunSettings, *, resume: bool = False, run_key: int | None = None
    ) -> None:
        """Create the ledger and its settings file, or continue one.

        path: for example ``run.tsv``; settings and run key go to ``run.json``. resume: continue where a run stopped,
        after cutting off a torn last line; where there is no run yet, begin one. run_key: from a user's seed; None
        draws one, or takes the resumed run's.

        Raises:
            LedgerError: it exists and resume is False; it is another run's (the message names what differs); another
                process is writing it; it is damaged; it cannot be written. A file that was there is then unchanged,
                and one that was not is not left behind.
        """
        self.path = Path(path)
        self.settings = settings
        settings_file = settings_path(self.path)
        existing = [file for file in (self.path, settings_file) if os.path.lexists(file)]
        if existing and not resume:
            raise LedgerError(f"{existing[0]} exists; continue it with --resume, or give another output name")
        self._descriptor = _open_locked(self.path, new=not resume)
        # Asked again now that the lock is ours: only what nobody had begun may be taken away after a failure.
        made = [] if settings_file.exists() else [settings_file]
        if self.path not in existing and os.fstat(self._descriptor).st_size == 0:
            made.append(self.path)
        try:
            self._begin(settings_file, run_key)
        except BaseException as error:
            for file in made:
                file.unlink(missing_ok=True)
            self.close()
            if isinstance(error, OSError):
                raise _unwritable(self.path, error) from error
            raise

    def _begin(self, settings_file: Path, run_key: int | None) -> None:
        content = _read_all(self._descriptor)
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and not HEADER.encode().startswith(content):
            raise LedgerError(f"{self.path} is not a ledger; give another output name")
        if settings_file.exists():
            self.run_key = self._agree(settings_file, run_key)
        elif whole:
            raise LedgerError(
                f"{self.path} has rows but {settings_file.name} is missing, and with it the run key; "
                "put it back, or give another output name"
            )
        self.rows = _parse(self.path, whole) if whole else []
        self._indices = {row.idx for row in self.rows}
        if settings_file.exists():
            self._check_rows()
        else:
            self.run_key = new_run_key() if run_key is None else run_key
            write_settings(settings_file, self.settings, self.run_key)
        if len(whole) < len(content):
            os.ftruncate(self._descriptor, len(whole))
        if not whole:
            self._write(HEADER)
            sync_folder(self.path.parent)

    def _agree(self, settings_file: Path, run_key: int | None) -> int:
        """The run key of the run to be resumed, if it is the same run."""
        earlier, earlier_key = read_settings(settings_file)
        differing = earlier.differences(self.settings)
        if run_key not in (None, earlier_key):
            differing.append("seed")
        if differing:
            raise LedgerError(
                f"{self.path} is of a run with another {', '.join(differing)}; "
                "resume with the same settings, or give another output name"
            )
        return earlier_key

    def _check_rows(self) -> None:
        for row in self.rows:
            ours = all(getattr(row, name) == getattr(self.settings, name) for name in ("graph", "noise", "sigma"))
            ours &= all(getattr(row, name) == getattr(self.settings, name) for name in ("alpha", "rule"))
            ours &= row.samples[0] == self.settings.n0 and row.samples[1] <= self.settings.n
            if not ours or row.key != image_key(self.run_key, row.idx):
                raise LedgerError(
                    f"row {row.idx} of {self.path} does not belong to the run in {settings_path(self.path).name}; "
                    "give another output name"
                )

    def __contains__(self, idx: int) -> bool:
        return idx in self._indices

    def append(self, row: LedgerRow) -> None:
        """Add a row; it is on the disk when this returns.

        Raises:
            LedgerError: it cannot be written (the file then ends with the row before), or its idx is there already.
        """
        if row.idx in self._indices:
            raise LedgerError(f"{self.path} has a row {row.idx} already; an image is certified once in a run")
        try:
            self._write(row.to_line())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.rows.append(row)
        self._indices.add(row.idx)

    def _write(self, line: str) -> None:
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            remaining = f"{line}\n".encode()
            while remaining:
                remaining = remaining[os.write(self._descriptor, remaining) :]
            os.fsync(self._descriptor)
        except BaseException:
            # Also on Ctrl-C: a row is there as a whole or not at all.
            os.ftruncate(self._descriptor, end)
            raise

    def close(self) -> None:
        """Release the file and its lock. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_ledger(path: str | Path) -> list[LedgerRow]:
    """Rows of a ledger in file order. A torn last line, of a run in progress or killed, is left out.

    Raises:
        LedgerError: missing, unreadable, damaged, or not a ledger.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise LedgerError(f"{path} does not exist; give a ledger that certify wrote") from error
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error.strerror})") from error
    return _parse(path, content[: content.rfind(b"\n") + 1])


def equal_ledgers(a: Iterable[LedgerRow], b: Iterable[LedgerRow]) -> bool:
    """Whether two ledgers certify the same: rows sorted by idx, whatever time, target and device say."""
    first, second = (sorted((row.outcome for row in rows), key=lambda row: row.idx) for rows in (a, b))
    return first == second


def image_sha(image: np.ndarray) -> str:
    """SHA-256 in hex of an image, uint8[H, W, C]: the line ``H W C``, then its bytes in C order."""
    height, width, channels = image.shape
    return hashlib.sha256(f"{height} {width} {channels}\n".encode() + image.tobytes()).hexdigest()


def _parse_count(pair: str) -> tuple[int, int]:
    label, count = pair.split(":")
    return int(label), int(count)


def _parse(path: str | Path, content: bytes) -> list[LedgerRow]:
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise LedgerError(f"{path} is not a ledger: it is not text") from error
    if lines[0] != HEADER:
        raise LedgerError(f"{path} is not a ledger: its first line is {lines[0][:40]!r}")
    rows: dict[int, LedgerRow] = {}
    for number, line in enumerate(lines[1:-1], start=2):
        try:
            row = LedgerRow.from_line(line)
        except ValueError as error:
            raise LedgerError(f"{path}, line {number} is damaged ({error})") from error
        if row.idx in rows:
            raise LedgerError(f"{path}, line {number} repeats row {row.idx}")
        rows[row.idx] = row
    return list(rows.values())


def _open_locked(path: Path, new: bool) -> int:
    """A descriptor of the ledger that no other process has; closing it, or dying, frees the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if new else 0), 0o644)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between our open and our lock, a run that failed to begin may have taken the file away.
        if os.fstat(descriptor).st_nlink == 0:
            raise BlockingIOError
    except BlockingIOError as error:
        os.close(descriptor)
        raise LedgerError(f"{path} is being written by another process; wait for it, or give another name") from error
    except OSError as error:
        os.close(descriptor)
        raise _unwritable(path, error) from error
    return descriptor


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _unwritable(path: Path, error: OSError) -> LedgerError:
    return LedgerError(f"{path} cannot be written ({error.strerror}); give another output name, or make room")
