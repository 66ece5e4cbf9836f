"""``intcert tune``: the schedules of a model's kernels, measured where they are to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intcert.cli import options
from intcert.cli.failure import Failure, Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from intcert.compile.database import LayerEntry
    from intcert.compile.tune import Progress, Report
    from intcert.compile.tune.board import BoardDevice


@click.command("tune")
@click.argument("model")
@click.option(
    "--target",
    default="host",
    show_default=True,
    help="What to tune for; this machine or its GPU must run it, or the board of --rpc-server or --rpc-tracker.",
)
@click.option(
    "--scheme",
    type=click.Choice(["auto", "q15", "q31"]),
    default="auto",
    show_default=True,
    help="Requantization, as for `intcert compile`.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Candidates to measure for each distinct layer.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds that building or running a candidate may take.",
)
@click.option(
    "--db", "database", type=click.Path(path_type=Path), help="Database to write.  [default: TARGET.json, here]"
)
@options.one_board_options
def command(
    model: str,
    target: str,
    scheme: str,
    trials: int,
    timeout: float,
    database: Path | None,
    boards: options.Boards | None,
) -> None:
    """Measure schedules for the kernels of a model, and keep the best.

    MODEL is a quantized program (.pt2), an integer graph (.graph), or the word demo. `intcert compile --db FILE` uses
    what was found; counts never depend on it. The same command again goes on where it stopped, or was stopped: finished
    measurements are kept in FILE.trials.
    """
    path = options.model_path(model)
    if not options.is_model(path):
        raise Failure(f"{model} is not a model; give a .pt2 or .graph file, or the word demo")

    from intcert.targets import CudaTarget, find

    device = find(target)
    if isinstance(device, CudaTarget) and boards is not None:
        raise Failure(
            f"{target} is tuned on this machine's GPU, not on boards; leave --rpc-server and --rpc-tracker out"
        )
    database = database or Path(f"{device.name}.json")
    options.check_writable(database)

    from intcert.compile.build import load_model
    from intcert.compile.tune import tune

    name = model if model == options.DEMO else path.stem
    try:
        graph = load_model(path, scheme).graph
        with _progress() as watch, _board(boards) as board:
            report = tune(graph, device, database, name=name, trials=trials, timeout=timeout, device=board, watch=watch)
    except KeyboardInterrupt:
        raise Interrupted(f"finished measurements are in {database}.trials; give the same command to go on") from None
    _show(report, database)


@contextmanager
def _board(boards: options.Boards | None) -> Iterator[BoardDevice | None]:
    """What times candidates; None for this machine."""
    if boards is None:
        yield None
        return
    from intcert.compile.tune.board import BoardDevice

    with BoardDevice(boards.source, boards.patience, options.note) as board:
        yield board


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    from intcert.cli.output import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("images at once", total=None, note="")

        def watch(progress: Progress) -> None:
            note = f"best {progress.ratio:.3f} of the default"
            bar.update(task, description=progress.layer, completed=progress.trials, total=progress.total, note=note)

        yield watch


def _show(report: Report, database: Path) -> None:
    from intcert.cli.output import console, facts, table

    rows = [
        (name, count, *_times(entry), " ".join(f"{field}={value}" for field, value in sorted(entry.schedule.items())))
        for name, count, entry in report.layers
    ]
    columns = ("layer", "like it", "default us", "best us", "gain", "schedule")
    console().print(table(columns, rows, right=(1, 2, 3, 4)))
    for layer, schedule, reason in report.refused:
        click.echo(f"refused: {layer} {schedule}: {reason}")
    before = sum(count * entry.default_us for _, count, entry in report.layers)
    after = sum(count * entry.best_us for _, count, entry in report.layers)
    network = report.network
    chunk = "the session chooses them by the GPU's cache and memory"
    if network is not None:
        chunk = f"{network.chunk}; the network took {network.default_us} us by default, {network.best_us} us so"
    click.echo(
        facts(
            [
                ("database", database),
                ("images at once", chunk),
                ("tuned layers", f"{before:.2f} us an image by default, {after:.2f} us"),
                ("refused", f"{len(report.refused)} candidates"),
            ]
        )
    )


def _times(entry: LayerEntry) -> tuple[str, str, str]:
    gain = 1 - entry.best_us / entry.default_us
    return f"{entry.default_us:.3f}", f"{entry.best_us:.3f}", f"{gain:.1%}"
