"""What commands print: tables, progress bars, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from intcert.runtime.decimals import MAX_LENGTH, canonical_decimal
from intcert.runtime.noise import PIXEL_STEPS

_PIPE_WIDTH = 160  # where no terminal says how wide lines may be


def console(stderr: bool = False) -> Console:
    """Standard output or standard error, as wide as the terminal."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()) -> Table:
    """A table of plain text. right: positions of the columns that are aligned to the right."""
    aligned = set(right)
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, name in enumerate(columns):
        result.add_column(name, justify="right" if position in aligned else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    return result


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values, a line each."""
    lines = [(name, str(value)) for name, value in pairs]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines)


def progress_bar() -> Progress:
    """A bar on standard error with an estimate of the time left; silent where that is no terminal.

    Every task has the field ``note``, a text beside the bar.
    """
    screen = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen,
        disable=not screen.is_terminal,
    )


def both_scales(sigma: str) -> str:
    """A noise level, given on the [0, 1] scale, on that scale and in pixel steps; both exact."""
    with localcontext(prec=2 * MAX_LENGTH):
        steps = canonical_decimal(f"{Decimal(sigma) * PIXEL_STEPS:f}")
    return f"{sigma} on the [0, 1] scale = {steps} pixel steps"


def audit_line(summary: Mapping[str, Any] | None) -> str:
    """What a manifest says of its machine code; docs/audit.md."""
    if summary is None:
        return "not audited: no disassembler was installed; `intcert audit` does it"
    parts = ", ".join(
        f"{code['architecture']}: {code['instructions']:,} instructions in {code['functions']} functions, read by "
        f"{code['disassembler']}"
        for code in summary["codes"]
    )
    if summary["clean"]:
        return f"integer-only ({parts})"
    count = summary["findings"]
    return f"{count} finding{'s' * (count > 1)}, the first {summary['first']} ({parts})"


def byte_size(count: int) -> str:
    """A number of bytes in the unit that suits it: 512 B, 1.5 KiB, 3.20 MiB."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.2f} MiB"
