"""The record of a training run: a CSV file, and TensorBoard's event files where that package is installed."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from intcert.train.loop import Step

CSV_NAME, EVENTS_NAME = "log.csv", "tensorboard"
COLUMNS = ("phase", "step", "epoch", "lr", "loss", "images_per_s")


class TrainingLog:
    """Writes a row every ``every`` steps, and one at the end of each phase; call it with every step.

    The loss of a row is the mean over the steps since the row before. Steps that a resumed run repeats are not written
    twice. A context manager.

    Attributes:
        events: whether event files are written too; they need the package tensorboard.
    """

    def __init__(self, folder: Path, every: int = 50) -> None:
        """folder is made by the first step, so that a run which is refused leaves none behind."""
        self._folder, self._path, self._every = folder, folder / CSV_NAME, every
        self._losses: list[float] = []
        self._images, self._seconds = 0, 0.0
        self._begun = False
        self._writer: Any = None
        self._make_writer = _event_writer()
        self.events = self._make_writer is not None

    def __call__(self, step: Step) -> None:
        if not self._begun:
            self._begin(step)
        self._losses.append(step.loss)
        self._images, self._seconds = self._images + step.images, self._seconds + step.seconds
        if step.done % self._every and step.done < step.total:
            return
        values = {
            "lr": f"{step.lr:.6g}",
            "loss": f"{sum(self._losses) / len(self._losses):.5f}",
            "images_per_s": f"{self._images / max(self._seconds, 1e-9):.1f}",
        }
        row = {"phase": step.phase, "step": str(step.done), "epoch": f"{step.epoch:.3f}"} | values
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{step.phase}/{name}", float(value), step.done)
        self._losses, self._images, self._seconds = [], 0, 0.0

    def _begin(self, first: Step) -> None:
        """Keep the rows of an earlier process, but for steps that are about to be done again."""
        self._begun = True
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._make_writer is not None:
            self._writer = self._make_writer(str(self._folder / EVENTS_NAME))
        order = {"float": 0, "qat": 1}
        begin = (order[first.phase], first.done)
        kept = [row for row in _read(self._path) if (order[row["phase"]], int(row["step"])) < begin]
        with open(self._path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _read(path: Path) -> list[dict[str, str]]:
    """Rows of an earlier process; one that was torn by a kill is left out."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows: Iterable[dict[str, str]] = list(csv.DictReader(file))
    return [row for row in rows if None not in row.values() and row["step"].isdecimal()]


def _event_writer() -> Any:
    """The class that writes event files into a folder, where it can be imported."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter
