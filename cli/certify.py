"""``intcert certify``: certify the images of a data set, one row of the ledger each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intcert.cli import options
from intcert.cli.failure import Interrupted

if TYPE_CHECKING:
    from intcert.runtime.certificate import CertificateTable
    from intcert.runtime.certify import Spread
    from intcert.runtime.datasets import Dataset
    from intcert.runtime.ledger import Ledger, LedgerRow
    from intcert.runtime.session import Session

RADII = ("0", "0.25", "0.5", "0.75")  # of the summary, on the [0, 1] scale


@click.command("certify")
@click.argument("network", metavar="ARTIFACT", type=click.Path(path_type=Path))
@options.data_option
@options.split_option
@click.option(
    "--n",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="Estimation samples an image; with --radius at most so many.",
)
@click.option(
    "--radius", metavar="R", help="Certify this radius on the [0, 1] scale, with as few samples as each image needs."
)
@click.option("--n0", type=click.IntRange(min=1), default=100, show_default=True, help="Selection samples an image.")
@options.alpha_option
@click.option(
    "--rule",
    type=click.Choice(["cp1", "cp2"]),
    help="Bound the chosen class alone (cp1, the default), or the runner-up too (cp2).",
)
@click.option("--skip", type=click.IntRange(min=1), default=1, show_default=True, help="Take every SKIP-th image.")
@click.option(
    "--max", "limit", metavar="INDEX", type=click.IntRange(min=0), help="Stop before the image of this index."
)
@click.option("--sigma", metavar="S", help="Noise level of a rival's program, by default the one it was trained with.")
@options.device_option
@options.threads_option
@options.board_options
@options.seed_option
@click.option("--resume", is_flag=True, help="Continue the run whose ledger this is.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Ledger to write, like run.tsv.")
def command(
    network: Path,
    data: str,
    split: str,
    n: int,
    radius: str | None,
    n0: int,
    alpha: str,
    rule: str | None,
    skip: int,
    limit: int | None,
    sigma: str | None,
    device: str | None,
    threads: int | None,
    boards: options.Boards | None,
    seed: str | None,
    resume: bool,
    output: Path,
) -> None:
    """Certify the images of a data set.

    For each image: the class under noise, and the l2 radius within which no perturbation changes it. Writes one row
    an image to the ledger (run.tsv) and the settings of the run, with its secret key, beside it (run.json).

    ARTIFACT may also be a program (.pt2) of `intcert train --recipe float` or `floatrs-quant`: these rivals run in
    torch, under continuous noise, and get the certificate of Cohen et al.
    """
    if radius is not None and rule is not None:
        raise click.UsageError("--radius has a rule of its own; leave --rule out")
    key = None if seed is None else options.run_key(seed)
    options.check_writable(output)

    from intcert.cli.networks import open_network
    from intcert.cli.output import console
    from intcert.runtime import CertificateParameters, Ledger
    from intcert.runtime.certify import run_settings

    with open_network(network, threads, sigma, device, boards) as opened:
        session = opened.session
        dataset = options.open_data(data, split, session, opened.class_names)
        parameters = CertificateParameters(
            sigma=session.sigma,
            dimension=prod(session.input_shape),
            alpha=alpha,
            n0=n0,
            n=n,
            rule=rule or "cp1" if radius is None else f"kt:{radius}",
        )
        with console(stderr=True).status("making the certificate table"):
            table = opened.table(parameters)
        record: dict[str, Any] = {"data": data, "split": split, "skip": skip, "max": limit, "seed": seed is not None}
        settings = run_settings(session, dataset, parameters, record)
        with Ledger(output, settings, resume=resume, run_key=key) as ledger:
            earlier, begin = len(ledger.rows), time.perf_counter()
            _certify(session, dataset, table, ledger, skip, limit, opened.spread)
            seconds = time.perf_counter() - begin
    title = f"{output}: {data}, {rule_name(parameters.rule)}, N = {n:,}, alpha = {alpha}, sigma = {session.sigma}"
    click.echo(title)
    click.echo(summary(ledger.rows, ledger.rows[earlier:], seconds))


def _certify(
    session: Session,
    dataset: Dataset,
    table: CertificateTable,
    ledger: Ledger,
    skip: int,
    limit: int | None,
    spread: Spread | None,
) -> None:
    """Run the loop under a progress bar."""
    from intcert.cli.output import progress_bar
    from intcert.runtime import Progress, certify_dataset
    from intcert.runtime.errors import DeviceLostError

    with progress_bar() as bar:
        task = bar.add_task("images", total=None, note="")

        def show(progress: Progress) -> None:
            rows = ledger.rows
            accuracy = f"certified accuracy {sum(row.correct for row in rows) / len(rows):.3f}" if rows else ""
            started = progress.samples_done / progress.samples if progress.row is None else 0
            bar.update(task, total=progress.images, completed=progress.images_done + started, note=accuracy)

        try:
            certify_dataset(session, dataset, table, ledger, skip=skip, limit=limit, progress=show, spread=spread)
        except KeyboardInterrupt:
            raise Interrupted(_how_to_go_on(ledger)) from None
        except DeviceLostError as error:
            raise DeviceLostError(f"{error}; {_how_to_go_on(ledger)}") from error


def _how_to_go_on(ledger: Ledger) -> str:
    return (
        f"{ledger.path} is complete as far as it goes, {len(ledger.rows)} images; "
        "go on with the same command and --resume"
    )


def rule_name(rule: str) -> str:
    """A stopping rule in words."""
    kind, _, radius = rule.partition(":")
    names = {"cp1": "Clopper-Pearson", "cp2": "Clopper-Pearson on two classes", "kt": f"sequential at radius {radius}"}
    return names[kind]


def summary(rows: Sequence[LedgerRow], fresh: Sequence[LedgerRow], seconds: float) -> str:
    """What a run found. rows: of the whole ledger; fresh: those that this process made, in ``seconds``."""
    from intcert.cli.output import facts
    from intcert.runtime import ABSTAIN, certified_at

    images = len(rows)
    correct = [row for row in rows if row.correct]
    abstained = sum(row.predict == ABSTAIN for row in rows)
    pairs: list[tuple[str, object]] = [("images", len(rows))]
    for radius in RADII:
        certified = sum(certified_at(row.sqradius, radius) for row in correct)
        pairs.append((f"certified at radius {radius}", _share(certified, images)))
    drawn, fresh_drawn = (sum(sum(row.samples) for row in part) for part in (rows, fresh))
    pairs += [
        ("abstained", _share(abstained, images)),
        ("accuracy where it answered", _share(len(correct), len(rows) - abstained)),
        ("average certified radius", f"{sum(float(row.radius) for row in correct) / max(images, 1):.3f}"),
        ("samples drawn", f"{drawn:,}"),
    ]
    if fresh:
        pairs += [
            ("images/s", f"{len(fresh) / seconds:.3g}"),
            ("noise samples/s", f"{fresh_drawn / seconds:,.0f}"),
        ]
    return facts(pairs)


def _share(count: int, total: int) -> str:
    return f"{count} of {total} = {count / total:.3f}" if total else "-"
