"""Certification logs of Cohen, Rosenfeld and Kolter ("Certified Adversarial Robustness via Randomized Smoothing", ICML
2019; github.com/locuslab/smoothing): six tab-separated columns after a header line.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from intcert.runtime.errors import LedgerError
from intcert.runtime.files import write_whole
from intcert.runtime.ledger import COLUMNS

COHEN_COLUMNS = COLUMNS[:6]


@dataclass(frozen=True)
class CohenRow:
    """One image of a log.

    idx, label and predict (-1: abstained) and correct (0 or 1) as in our ledgers; radius: certified l2 radius on the
    [0, 1] scale; time: seconds (``15.4``) or hours, minutes and seconds (``0:00:14.206886``). The last two are text,
    since the published logs have several notations of each.
    """

    idx: int
    label: int
    predict: int
    radius: str
    correct: int
    time: str


def read_cohen(path: str | Path) -> list[CohenRow]:
    """Rows of a log in file order.

    Raises:
        LedgerError: missing, unreadable, or not such a log.
    """
    try:
        lines = Path(path).read_bytes().decode().split("\n")
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise LedgerError(f"{path} is not a certification log: it is not text") from error
    if lines[0] != "\t".join(COHEN_COLUMNS):
        raise LedgerError(f"{path} is not a certification log: its first line is {lines[0][:40]!r}")
    # Text after the last newline is a row that was being written.
    return [_parse(path, number, line) for number, line in enumerate(lines[1:-1], start=2)]


def write_cohen(path: str | Path, rows: Iterable[CohenRow]) -> None:
    """Write a log, at once or not at all; what ``read_cohen`` read comes back byte for byte.

    Raises:
        LedgerError: the path cannot be written.
    """
    path = Path(path)
    lines = ["\t".join(COHEN_COLUMNS), *("\t".join(map(str, astuple(row))) for row in rows)]
    try:
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise LedgerError(f"{path} cannot be written ({error.strerror})") from error


def _parse(path: str | Path, number: int, line: str) -> CohenRow:
    try:
        idx, label, predict, radius, correct, time = line.split("\t")
        float(radius)
        row = CohenRow(int(idx), int(label), int(predict), radius, int(correct), time)
    except ValueError as error:
        raise LedgerError(f"{path}, line {number} is damaged ({error})") from error
    if "\t".join(map(str, astuple(row))) != line:
        raise LedgerError(f"{path}, line {number} has a number that is not in its usual form")
    return row
