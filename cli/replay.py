"""``intcert replay``: count the rows of a ledger again, on another artifact or another machine."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intcert.cli import options
from intcert.cli.failure import ANSWER_IS_NO, Failure

if TYPE_CHECKING:
    import numpy as np

    from intcert.runtime.certificate import CertificateParameters
    from intcert.runtime.datasets import Dataset
    from intcert.runtime.ledger import LedgerRow
    from intcert.runtime.session import LocalSession


@click.command("replay")
@click.argument("ledger", type=click.Path(path_type=Path))
@options.artifact_argument()
@options.data_option
@options.split_option
@click.option("--rows", metavar="K", type=click.IntRange(min=1), help="Only the first K rows.")
@options.threads_option
def command(ledger: Path, artifact: Path, data: str, split: str, rows: int | None, threads: int | None) -> None:
    """Count the rows of a ledger again.

    Compares counts and certificates with those of ARTIFACT, exactly. The same network gives the same counts on
    every target, so the first difference (exit code 1) means that one of the two computes something else.
    """
    from intcert.cli.output import progress_bar
    from intcert.runtime import certify, load_table, open_artifact, read_ledger

    recorded = read_ledger(ledger)[:rows]
    if not recorded:
        raise Failure(f"{ledger} has no rows to count again; give a ledger with at least one")
    with open_artifact(artifact, threads) as session, progress_bar() as bar:
        dataset = options.open_data(data, split, session, session.artifact.manifest.class_names)
        task = bar.add_task("rows", total=len(recorded), note="")
        for row in recorded:
            _check_same_network(row, session, ledger, artifact)
            image = _image(row, dataset, ledger, data)
            table = load_table(
                _parameters(row, session, ledger), session.artifact.law, session.artifact.certificates.values()
            )
            again = certify(session, image, row.key, table)
            counts = tuple((label, int(count)) for label, count in enumerate(again.counts) if count)
            for what, here, there in (
                ("counts", counts, row.counts),
                ("class", again.predict, row.predict),
                ("m", again.sqradius, row.sqradius),
            ):
                if here != there:
                    raise Failure(
                        f"row {row.idx}: {what} {_text(here)} on {session.target} ({session.device}), "
                        f"{_text(there)} in {ledger} ({row.target}, {row.device})",
                        ANSWER_IS_NO,
                    )
            bar.advance(task)
    samples = sum(sum(row.samples) for row in recorded)
    click.echo(f"{len(recorded)} rows, {samples:,} samples: counts and certificates are equal on {session.target}")


def _check_same_network(row: LedgerRow, session: LocalSession, ledger: Path, artifact: Path) -> None:
    for what, here, there in (
        ("graph", session.graph_hash, row.graph),
        ("sigma", session.sigma, row.sigma),
        ("noise", session.noise_hash, row.noise),
    ):
        if here != there:
            raise Failure(
                f"row {row.idx} of {ledger} is of another network: {what} {_short(there)}, and {_short(here)} in "
                f"{artifact}; compile the same model with the same --sigma and --scheme"
            )


def _image(row: LedgerRow, dataset: Dataset, ledger: Path, data: str) -> np.ndarray:
    from intcert.runtime.ledger import image_sha

    if row.idx >= len(dataset):
        raise Failure(
            f"row {row.idx} of {ledger} has no image in {data}, which ends at {len(dataset) - 1}; give its data"
        )
    image = dataset[row.idx].image
    if image_sha(image) != row.image_sha:
        raise Failure(
            f"image {row.idx} of {data} is not the one that {ledger} certified; give the data set of that run"
        )
    return image


def _parameters(row: LedgerRow, session: LocalSession, ledger: Path) -> CertificateParameters:
    """What the row was certified with. A sequential row may have stopped early: only the settings know its limit."""
    from intcert.runtime import CertificateParameters
    from intcert.runtime.run_settings import read_settings, settings_path

    n0, n = row.samples
    if row.rule.startswith("kt:"):
        n = read_settings(settings_path(ledger))[0].n
    return CertificateParameters(
        sigma=row.sigma, dimension=prod(session.input_shape), alpha=row.alpha, n0=n0, n=n, rule=row.rule
    )


def _text(value: int | tuple[tuple[int, int], ...]) -> str:
    return str(value) if isinstance(value, int) else ",".join(f"{label}:{count}" for label, count in value)


def _short(value: str) -> str:
    return value if len(value) < 20 else f"{value[:12]}..."
