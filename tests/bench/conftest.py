"""The scripts of bench/ as modules, and ledgers made by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from intcert.runtime.ledger import HEADER, LedgerRow

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

#: (label, predict, sqradius) of an image.
Outcome = tuple[int, int, int]


@pytest.fixture
def rows() -> Callable[[Sequence[Outcome]], list[LedgerRow]]:
    """Ledger rows with the given outcomes; everything else is made up."""

    def make(outcomes: Sequence[Outcome]) -> list[LedgerRow]:
        fixed = {"samples": (100, 1000), "counts": ((0, 1000),), "rule": "cp1", "alpha": "0.001", "sigma": "0.25"}
        hashes = {name: "0" * 64 for name in ("graph", "noise")}
        return [
            LedgerRow(
                idx=5 * i,
                label=label,
                predict=predict,
                sqradius=m,
                image_sha=f"{i:064x}",
                time=0.5,
                key=i,
                target="t",
                device="d",
                **fixed,
                **hashes,
            )
            for i, (label, predict, m) in enumerate(outcomes)
        ]

    return make


@pytest.fixture
def write_ledger(rows, tmp_path) -> Callable[[str, Sequence[Outcome]], Path]:
    """Writes a ledger of that name into ``tmp_path/ledgers``, whose path it returns."""

    def write(name: str, outcomes: Sequence[Outcome]) -> Path:
        folder = tmp_path / "ledgers"
        folder.mkdir(exist_ok=True)
        lines = [HEADER, *(row.to_line() for row in rows(outcomes))]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
        return folder

    return write
