"""``intcert bench``: how fast an artifact counts on this machine, and where its time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intcert.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from intcert.runtime.benchmark import Benchmark


@click.command("bench")
@options.artifact_argument()
@click.option("--n", type=click.IntRange(min=1), default=1000, show_default=True, help="Noise samples a call.")
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Calls that are timed.")
@options.device_option
@options.threads_option
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write all measurements.")
def command(
    artifact: Path, n: int, rounds: int, device: str | None, threads: int | None, json_file: Path | None
) -> None:
    """Measure how fast an artifact counts.

    Prints noisy images a second, the latency of a call, and for each layer the time on one thread (on a GPU: for a
    sample as part of a chunk) with the instruction that its kernel is built on. Other work on the machine shows in all
    of it.
    """
    if json_file is not None:
        options.check_writable(json_file)

    from intcert.cli.output import console, progress_bar
    from intcert.runtime import open_artifact
    from intcert.runtime.benchmark import benchmark

    with open_artifact(artifact, threads, device or "auto") as session, progress_bar() as bar:
        task = bar.add_task("measure", total=None, note="")
        found = benchmark(session, n, rounds, lambda done, total: bar.update(task, completed=done, total=total))
    if json_file is not None:
        json_file.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    click.echo(f"{_summary(found)}\n")
    console().print(_layers(found))


def _summary(found: Benchmark) -> str:
    from intcert.cli.output import byte_size, facts

    latency = ", ".join(f"{name} {seconds * 1e3:.3f}" for name, seconds in found.latency().items())
    memory = "unknown" if found.peak_memory is None else byte_size(found.peak_memory)
    return facts(
        [
            ("target", f"{found.target} on {found.device}, threads: {found.threads}, sigma {found.sigma}"),
            ("counts", f"{found.images_per_second:,.0f} images/s with noise and decision"),
            ("noise", f"{found.draws_per_second:,.0f} samples/s, {found.dimension:,} an image"),
            ("network", f"{found.network_images_per_second:,.0f} images/s without them"),
            ("latency", f"{latency} ms for {found.n:,} samples ({len(found.counts)} calls)"),
            ("peak memory", memory),
        ]
    )


def _layers(found: Benchmark) -> Table:
    from intcert.cli.output import table

    rows = [
        [
            position,
            layer.name,
            layer.kernel,
            layer.instruction,
            " x ".join(map(str, layer.shape)),
            f"{layer.seconds * 1e6:,.2f}",
            f"{layer.share:.1%}",
        ]
        for position, layer in enumerate(found.layers)
    ]
    rows.append(["", "sum", "", "", "", f"{sum(layer.seconds for layer in found.layers) * 1e6:,.2f}", ""])
    columns = ("#", "layer", "kernel", "instruction", "shape", "us an image", "share")
    return table(columns, rows, right=(0, 5, 6))
