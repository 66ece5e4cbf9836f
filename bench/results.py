"""Certification runs of an experiment: which ledgers a folder holds, and the numbers that the figures show.

A ledger is named after what it certifies, ``METHOD_SIGMA.tsv``, or ``METHOD_SIGMA_at_SIGMA.tsv`` where the noise of the
certificate is not that of the training: ``intrs_0.25.tsv``, ``intrs-consistency_0.25.tsv``, ``float_0.25_at_0.5.tsv``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from intcert.runtime import ABSTAIN, read_ledger
from intcert.runtime.errors import LedgerError
from intcert.runtime.ledger import LedgerRow
from intcert.runtime.smoothing import squared_steps

TITLES = {
    "intrs": "IntRS",
    "float": "FloatRS-fp",
    "floatrs-quant": "FloatRS-quant",
    "intrs-consistency": "IntRS + consistency",
    "float-consistency": "FloatRS-fp + consistency",
    "floatrs-quant-consistency": "FloatRS-quant + consistency",
}

_NAME = re.compile(r"(?P<method>[a-z-]+)_(?P<trained>[0-9.]+?)(_at_(?P<certified>[0-9.]+))?\.tsv")
_Z = 1.959963984540054  # normal quantile of a two-sided 95 % interval
_squared_steps = functools.cache(squared_steps)


@dataclass(frozen=True)
class Run:
    """A ledger. trained, certified: noise levels on the [0, 1] scale, exact decimals."""

    method: str
    trained: str
    certified: str
    rows: tuple[LedgerRow, ...]

    @property
    def title(self) -> str:
        return TITLES[self.method]


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def find_runs(folder: Path) -> list[Run]:
    """The runs in a folder, by noise level and method in the order of ``TITLES``.

    Raises:
        LedgerError: no ledger of a known name is there, or one is damaged or empty.
    """
    runs = []
    for path in sorted(folder.glob("*.tsv")):
        match = _NAME.fullmatch(path.name)
        if match is None or match["method"] not in TITLES:
            continue
        rows = tuple(sorted(read_ledger(path), key=lambda row: row.idx))
        if not rows:
            raise LedgerError(f"{path} has no rows yet; let certify finish an image")
        runs.append(Run(match["method"], match["trained"], match["certified"] or match["trained"], rows))
    if not runs:
        raise LedgerError(f"{folder} holds no ledgers named like intrs_0.25.tsv; run bench/experiments.py first")
    order = list(TITLES)
    return sorted(runs, key=lambda run: (float(run.trained), float(run.certified), order.index(run.method)))


def certified(row: LedgerRow, radius: str) -> bool:
    """Whether an image is certified for its own class at a radius on the [0, 1] scale."""
    return row.correct and row.sqradius >= _squared_steps(radius)


def certified_accuracy(rows: Sequence[LedgerRow], radius: str) -> Interval:
    """Cohen et al. 2019: the share of all images that are certified at ``radius``; Wilson's interval."""
    return wilson(sum(certified(row, radius) for row in rows), len(rows))


def certified_percentage(rows: Sequence[LedgerRow]) -> Interval:
    """Equation 9 of Lin et al. 2021: the share of all images that get a certificate, right or wrong."""
    return wilson(sum(row.sqradius != ABSTAIN for row in rows), len(rows))


def certified_accuracy_of_answered(rows: Sequence[LedgerRow], radius: str) -> Interval:
    """Equation 10 of Lin et al. 2021 as printed: certified at ``radius`` among those that get any certificate."""
    answered = [row for row in rows if row.sqradius != ABSTAIN]
    return wilson(sum(certified(row, radius) for row in answered), len(answered))


def average_certified_radius(rows: Sequence[LedgerRow]) -> Interval:
    """Zhai et al. 2020: the mean over all images of the radius on the [0, 1] scale, 0 where the answer is wrong."""
    return mean([_radius(row) for row in rows])


def paired_accuracy(first: Run, second: Run, radius: str) -> Interval:
    """certified_accuracy of ``first`` minus that of ``second`` on the same images.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005: Wald's interval
    after half an observation is added to each of the four cells.

    Raises:
        LedgerError: the runs are of different images.
    """
    pairs = [(certified(a, radius), certified(b, radius)) for a, b in _matched(first, second)]
    gains, losses = (sum(pair == kind for pair in pairs) for kind in ((True, False), (False, True)))
    total, up, down = len(pairs) + 2, gains + 0.5, losses + 0.5
    centre = (up - down) / total
    half = _Z * math.sqrt(up + down - (up - down) ** 2 / total) / total
    return Interval((gains - losses) / len(pairs), centre - half, centre + half)


def paired_radius(first: Run, second: Run) -> Interval:
    """average_certified_radius of ``first`` minus that of ``second`` on the same images; normal interval.

    Raises:
        LedgerError: the runs are of different images.
    """
    return mean([_radius(a) - _radius(b) for a, b in _matched(first, second)])


def wilson(successes: int, trials: int) -> Interval:
    """A binomial proportion with Wilson's 95 % interval; nothing is known (0, 0 to 1) without trials."""
    if trials == 0:
        return Interval(0.0, 0.0, 1.0)
    share, square = successes / trials, _Z**2 / trials
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: Sequence[float]) -> Interval:
    """A mean with its normal 95 % interval."""
    middle = float(np.mean(values))
    half = _Z * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Interval(middle, middle - half, middle + half)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write tab-separated text with a header line; floats with 5 decimals."""
    lines = ["\t".join(columns), *("\t".join(map(_cell, row)) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _cell(value: object) -> str:
    return f"{value:.5f}" if isinstance(value, float) else str(value)


def _radius(row: LedgerRow) -> float:
    return math.sqrt(row.sqradius) / 255 if row.correct else 0.0


def _matched(first: Run, second: Run) -> list[tuple[LedgerRow, LedgerRow]]:
    if [(row.idx, row.image_sha) for row in first.rows] != [(row.idx, row.image_sha) for row in second.rows]:
        raise LedgerError(
            f"{first.title} and {second.title} at sigma {first.trained} were certified on different images; "
            "finish both runs with the same --data, --skip and --max"
        )
    return list(zip(first.rows, second.rows, strict=True))
