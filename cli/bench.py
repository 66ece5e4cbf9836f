"""``intcert bench``: how fast an artifact counts on this machine, and where its time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intcert.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from intcert.compile.estimate import Estimate
    from intcert.runtime.benchmark import Benchmark


@click.command("bench")
@options.artifact_argument()
@click.option("--n", type=click.IntRange(min=1), default=1000, show_default=True, help="Noise samples a call.")
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Calls that are timed.")
@options.device_option
@options.threads_option
@options.one_board_options
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write all measurements.")
@click.option(
    "--estimate",
    "core",
    metavar="CORE",
    help="Measure nothing: estimate the cycles of each layer on an ARM core, like cortex-a55, from LLVM's model of it.",
)
def command(
    artifact: Path,
    n: int,
    rounds: int,
    device: str | None,
    threads: int | None,
    boards: options.Boards | None,
    json_file: Path | None,
    core: str | None,
) -> None:
    """Measure how fast an artifact counts.

    Prints noisy images a second, the latency of a call, and for each layer the time on one thread (on a GPU: for a
    sample as part of a chunk) with the instruction that its kernel is built on. Other work on the machine shows in all
    of it. With --rpc-tracker or --rpc-server one board is measured, layers by its own clock.
    """
    if json_file is not None:
        options.check_writable(json_file)
    if core is not None:
        if boards is not None:
            raise click.UsageError("--estimate measures nothing, so it takes no board")
        _estimate(artifact, core, json_file)
        return

    from intcert.cli.networks import open_session
    from intcert.cli.output import console, progress_bar
    from intcert.runtime.benchmark import benchmark

    with open_session(artifact, threads, device, boards) as session, progress_bar() as bar:
        task = bar.add_task("measure", total=None, note="")
        found = benchmark(session, n, rounds, lambda done, total: bar.update(task, completed=done, total=total))
    if json_file is not None:
        json_file.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    click.echo(f"{_summary(found)}\n")
    console().print(_layers(found))


def _estimate(artifact: Path, core: str, json_file: Path | None) -> None:
    """Print what LLVM's machine model expects of an artifact that this machine need not be able to run."""
    from dataclasses import asdict

    from intcert.cli.output import console
    from intcert.compile.estimate import estimate
    from intcert.runtime.artifact import read_artifact

    with console(stderr=True).status(f"executing {artifact} under emulation"):
        found = estimate(read_artifact(artifact), core)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(found) | {"cycles": found.cycles}, indent=1) + "\n")
    click.echo(
        f"an estimate, not a measurement: {found.cycles:,.0f} cycles a noisy image, for {found.target} code on\n"
        f"{found.core} by the machine model of LLVM {found.llvm}, with every load from the first-level cache\n"
    )
    console().print(_estimated_layers(found))


def _estimated_layers(found: Estimate) -> Table:
    from intcert.cli.output import table

    rows = []
    for layer in found.layers:
        inner = [f"{layer.cycles / layer.products:.4f}", f"{layer.inner_ratio:.2f}"] if layer.products else ["", ""]
        share = f"{layer.cycles / found.cycles:.1%}"
        rows.append([layer.name, layer.kernel, f"{layer.cycles:,.0f}", share, f"{layer.products:,.0f}", *inner])
    columns = ("layer", "kernel", "cycles", "share", "products", "cycles a product", "inner loop / its limit")
    return table(columns, rows, right=(2, 3, 4, 5, 6))


def _summary(found: Benchmark) -> str:
    from intcert.cli.output import byte_size, facts

    latency = ", ".join(f"{name} {seconds * 1e3:.3f}" for name, seconds in found.latency().items())
    memory = "unknown" if found.peak_memory is None else f"{byte_size(found.peak_memory)}, of this process"
    threads = "" if found.threads is None else f", threads: {found.threads}"
    return facts(
        [
            ("target", f"{found.target} on {found.device}{threads}, sigma {found.sigma}"),
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
