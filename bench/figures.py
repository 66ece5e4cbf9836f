"""The paper's certification figures from ledgers: each command writes a table (TSV) and a picture (PNG).

    python bench/figures.py accuracy RESULTS/ledgers -o RESULTS/figures

RESULTS/ledgers holds ledgers named as bench/results.py says; bench/experiments.py makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib
from results import (
    Interval,
    Run,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_of_answered,
    certified_percentage,
    find_runs,
    paired_accuracy,
    paired_radius,
    write_table,
)

from intcert.runtime.errors import IntcertError

matplotlib.use("Agg")  # needs no screen; before pyplot is imported

import matplotlib.pyplot as plt

RADII = ("0", "0.25", "0.5", "0.75", "1", "1.25", "1.5", "2", "2.5", "3")  # of the tables
CURVE = [f"{step / 50:.2f}" for step in range(200)]  # of the pictures, 0 to 3.98
COLOURS = {"intrs": "tab:blue", "float": "tab:orange", "floatrs-quant": "tab:green"}
ENDS = ("low", "high")

_CONSISTENCY = "-consistency"


class Reported(click.Command):
    """A command whose user errors are one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except IntcertError as error:
            raise click.ClickException(str(error)) from error


@click.group()
def main() -> None:
    """Draw the paper's figures from ledgers."""


def figure(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand that takes a folder of ledgers and an output folder."""

    def decorate(function: Callable[..., None]) -> click.Command:
        function = click.option("-o", "--output", type=click.Path(path_type=Path), required=True)(function)
        function = click.argument("ledgers", type=click.Path(path_type=Path, exists=True, file_okay=False))(function)
        return main.command(name, cls=Reported)(function)

    return decorate


@figure("accuracy")
def accuracy(ledgers: Path, output: Path) -> None:
    """Certified accuracy against radius, per sigma and method (figures 3 and 4), and paired differences."""
    runs = _matching(find_runs(ledgers))
    rows = [
        (run.trained, run.method, radius, len(run.rows), *certified_accuracy(run.rows, radius))
        for run in runs
        for radius in RADII
    ]
    write_table(output / "certified_accuracy.tsv", ("sigma", "method", "radius", "images", "share", *ENDS), rows)
    write_table(
        output / "certified_accuracy_paired.tsv",
        ("sigma", "method", "minus", "radius", "images", "difference", *ENDS),
        [
            (run.trained, "intrs", rival.method, radius, len(run.rows), *paired_accuracy(run, rival, radius))
            for run, rival in _pairs(runs, lambda method: "intrs" if method in ("float", "floatrs-quant") else None)
            for radius in RADII
        ],
    )
    _curves(runs, lambda run: run.trained, "sigma = {}", output / "certified_accuracy.png")


@figure("percentage")
def percentage(ledgers: Path, output: Path) -> None:
    """Certified percentage (figure 5): equations 9 and 10 as printed, and Cohen's definition beside them."""
    runs = _matching(find_runs(ledgers))
    rows = []
    for run in runs:
        cells: list[object] = [run.trained, run.method, len(run.rows), *certified_percentage(run.rows)]
        for radius in ("0", "0.25", "0.5"):
            cells += [
                certified_accuracy_of_answered(run.rows, radius).value,
                certified_accuracy(run.rows, radius).value,
            ]
        rows.append(cells)
    at = [f"{kind}_at_{radius}" for radius in ("0", "0.25", "0.5") for kind in ("equation10", "cohen")]
    columns = ("sigma", "method", "images", "equation9", *ENDS, *at)
    write_table(output / "certified_percentage.tsv", columns, rows)
    bars = [(run, certified_percentage(run.rows)) for run in runs]
    _bars(bars, "certified percentage (equation 9)", output / "certified_percentage.png")


@figure("mismatch")
def mismatch(ledgers: Path, output: Path) -> None:
    """Certified accuracy where training and certification have different noise levels (figure 6)."""
    runs = find_runs(ledgers)
    mixed = {(run.trained, run.method) for run in runs if run.trained != run.certified}
    runs = [run for run in runs if (run.trained, run.method) in mixed]
    if not runs:
        raise click.ClickException(f"{ledgers} has no ledger named like intrs_0.25_at_0.5.tsv")
    rows = [
        (run.trained, run.certified, run.method, radius, len(run.rows), *certified_accuracy(run.rows, radius))
        for run in runs
        for radius in RADII
    ]
    columns = ("trained", "certified", "method", "radius", "images", "share", *ENDS)
    write_table(output / "sigma_mismatch.tsv", columns, rows)
    _mismatch_curves(runs, output / "sigma_mismatch.png")


@figure("radius")
def radius(ledgers: Path, output: Path) -> None:
    """Average certified radius with and without consistency regularization."""
    runs = _matching(find_runs(ledgers))
    columns = ("sigma", "method", "images", "radius", *ENDS)
    rows = [(run.trained, run.method, len(run.rows), *average_certified_radius(run.rows)) for run in runs]
    write_table(output / "average_radius.tsv", columns, rows)
    differences = [
        (with_it.trained, with_it.method, without.method, len(without.rows), *paired_radius(with_it, without))
        for without, with_it in _pairs(runs, lambda m: m.removesuffix(_CONSISTENCY) if _CONSISTENCY in m else None)
    ]
    columns = ("sigma", "method", "minus", "images", "difference", *ENDS)
    write_table(output / "average_radius_paired.tsv", columns, differences)
    bars = [(run, average_certified_radius(run.rows)) for run in runs]
    _bars(bars, "average certified radius", output / "average_radius.png")


@main.command("size")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def size(files: Sequence[Path], output: Path) -> None:
    """Size on disk of programs, artifacts and weights; the first file is what the others are compared with."""
    sizes = [file.stat().st_size for file in files]
    columns = ("file", "bytes", "of_first")
    rows = [(file.name, count, count / sizes[0]) for file, count in zip(files, sizes, strict=True)]
    write_table(output / "size.tsv", columns, rows)
    picture, axes = plt.subplots(figsize=(6, 0.5 * len(files) + 1.2))
    axes.barh([file.name for file in files], [count / 1e6 for count in sizes])
    axes.invert_yaxis()
    axes.set_xlabel("MB on disk")
    _save(picture, output / "size.png")


def _matching(runs: Sequence[Run]) -> list[Run]:
    """The runs whose certificates have the noise of the training."""
    return [run for run in runs if run.trained == run.certified]


def _pairs(runs: Sequence[Run], partner: Callable[[str], str | None]) -> list[tuple[Run, Run]]:
    """(partner, run) for every run whose method has a partner of the same noise level."""
    known = {(run.trained, run.method): run for run in runs}
    return [(known[key], run) for run in runs if (key := (run.trained, partner(run.method))) in known]


def _style(run: Run) -> dict[str, str]:
    base = run.method.removesuffix(_CONSISTENCY)
    return {"color": COLOURS[base], "linestyle": "-" if base == run.method else "--", "label": run.title}


def _curves(runs: Sequence[Run], key: Callable[[Run], str], title: str, path: Path) -> None:
    """One panel a key, one curve a run."""
    panels = list(dict.fromkeys(map(key, runs)))
    picture, grid = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), sharey=True, squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        for run in (run for run in runs if key(run) == panel):
            shares = [certified_accuracy(run.rows, at).value for at in CURVE]
            last = max((i for i, share in enumerate(shares) if share), default=0)
            axes.plot([float(at) for at in CURVE[: last + 2]], shares[: last + 2], **_style(run))
        axes.set_title(title.format(panel))
        axes.set_xlabel("l2 radius on the [0, 1] scale")
        axes.legend(fontsize="small")
    grid[0][0].set_ylabel("certified accuracy")
    grid[0][0].set_ylim(0, 1)
    _save(picture, path)


def _mismatch_curves(runs: Sequence[Run], path: Path) -> None:
    """Certified accuracy at two radii against the certification's sigma, a panel for each training sigma."""
    panels = list(dict.fromkeys(run.trained for run in runs))
    picture, grid = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), sharey=True, squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        for method in dict.fromkeys(run.method for run in runs if run.trained == panel):
            chosen = [run for run in runs if run.trained == panel and run.method == method]
            for at, line in (("0", "-"), ("0.25", "--")):
                shares = [certified_accuracy(run.rows, at).value for run in chosen]
                style = _style(chosen[0]) | {"label": f"{chosen[0].title}, r = {at}", "linestyle": line}
                axes.plot([float(run.certified) for run in chosen], shares, marker="o", **style)
        axes.set_title(f"trained at sigma = {panel}")
        axes.set_xlabel("sigma of the certificate")
        axes.legend(fontsize="small")
    grid[0][0].set_ylabel("certified accuracy")
    grid[0][0].set_ylim(0, 1)
    _save(picture, path)


def _bars(bars: Sequence[tuple[Run, Interval]], label: str, path: Path) -> None:
    """A bar a run with its interval, grouped by noise level."""
    picture, axes = plt.subplots(figsize=(1 + 0.6 * len(bars), 3.6))
    for position, (run, interval) in enumerate(bars):
        error = [[interval.value - interval.low], [interval.high - interval.value]]
        hatch = "//" if _CONSISTENCY in run.method else None
        axes.bar(position, interval.value, yerr=error, color=_style(run)["color"], hatch=hatch)
    names = [f"{run.title}\n{run.trained}" for run, _ in bars]
    axes.set_xticks(range(len(bars)), names, rotation=60, ha="right", fontsize="small")
    axes.set_ylabel(label)
    _save(picture, path)


def _save(picture: Any, path: Path) -> None:
    picture.tight_layout()
    picture.savefig(path, dpi=150)
    plt.close(picture)
    click.echo(f"wrote {path}")


if __name__ == "__main__":
    main()
