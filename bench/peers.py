"""intcert against the libraries that people would use instead, in one run on the same cores.

    python bench/peers.py --arch resnet20 --cores 1 --json FILE [--plot FILE]

Every peer runs the same network with random weights in a process of its own, pinned to the same cores; the processes
take turns, round after round, so that what else happens to the machine happens to all of them. Rates are images a
second (of CPU time on one core, of wall-clock time on several), the median of the rounds, at the fastest of a few batch
sizes. ``noise`` marks those whose time includes drawing the noise and deciding; the others get finished, normalized
images. A peer that is not installed is reported as missing. bench/growth.py shows how intcert's time grows with
samples, batch, image size and threads.

Model files, the peers' logs and the chosen batch sizes stay in the --work folder, so that a second run starts sooner.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from peer_models import SIDES, SIGMA, ModelFiles
from peer_networks import PEERS, Peer
from peer_process import PeerProcess, build, missing_packages
from rich.progress import Progress
from rich.table import Table

from intcert.cli.failure import Failure
from intcert.cli.options import check_writable
from intcert.cli.output import byte_size, console, progress_bar, table
from intcert.runtime.benchmark import machine_facts

FORMAT_VERSION = 1
INSTALL = "pip install 'intcert[bench]'"
PACKAGES = (
    "intcert", "apache-tvm", "apache-tvm-ffi", "numpy", "torch", "torchao", "openvino", "nncf", "onnx", "onnxruntime",
)  # fmt: skip


@dataclass
class Result:
    """What became of a peer.

    status: "ok", "missing" or "failed"; note: why it is not ok; noise: whether the time includes noise and decision;
    batch: images at once; images_per_second: a rate for each round; peak_memory: of its process, in bytes.
    """

    name: str
    noise: bool
    status: str = "ok"
    note: str = ""
    batch: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    images_per_second: list[float] = field(default_factory=list)
    peak_memory: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)


def measure(
    peers: Sequence[Peer], files: ModelFiles, cores: frozenset[int], rounds: int, seconds: float
) -> list[Result]:
    """Prepare the peers, then let them take turns for ``rounds`` rounds of ``seconds`` each; one Result a peer."""
    results = [Result(peer.name, peer.noise) for peer in peers]
    ready: dict[int, PeerProcess] = {}
    remembered = files.path(f"batches-{len(cores)}.json")
    batches = json.loads(remembered.read_text()) if remembered.exists() else {}
    try:
        with progress_bar() as bar:
            task = bar.add_task("prepare", total=len(peers), note="")
            for position, (peer, result) in enumerate(zip(peers, results, strict=True)):
                bar.update(task, note=peer.name)
                process = _prepare(peer, files, cores, batches.get(peer.name), result)
                if process is not None:
                    ready[position] = process
                bar.advance(task)
            batches |= {results[position].name: process.batch for position, process in ready.items()}
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text(json.dumps(batches, indent=1) + "\n")
            _take_turns(ready, results, rounds, seconds, bar)
        for position, process in ready.items():
            results[position].settings, results[position].peak_memory = process.record()
    finally:
        for process in ready.values():
            process.close()
    return results


def _prepare(
    peer: Peer, files: ModelFiles, cores: frozenset[int], batch: int | None, result: Result
) -> PeerProcess | None:
    """The peer's process, ready to run; None, and why in ``result``, where that fails."""
    missing = missing_packages(peer.packages)
    if missing:
        result.status, result.note = "missing", f"{', '.join(missing)}: {INSTALL}"
        return None
    process = PeerProcess(peer, files, cores)
    try:
        build(files, peer.form)
        process.prepare(batch)
    # Whatever goes wrong in a foreign library must not end the run of the others.
    except Exception as error:
        process.close()
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        result.status, result.note = "failed", f"{type(error).__name__}: {reason}"
        return None
    result.batch = process.batch
    return process


def _take_turns(
    ready: dict[int, PeerProcess], results: list[Result], rounds: int, seconds: float, bar: Progress
) -> None:
    task = bar.add_task("rounds", total=rounds * len(ready), note="")
    for _ in range(rounds):
        for position, process in ready.items():
            bar.update(task, note=results[position].name)
            results[position].images_per_second.append(process.images_per_second(seconds))
            bar.advance(task)


def ratios(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """For each way that intcert counts, how many times as fast it is as every other that ran, by the medians."""
    ran = [result for result in results if result.status == "ok"]
    ours = [result for result in ran if result.noise and result.name.startswith("intcert ")]
    return {own.name: {other.name: own.median / other.median for other in ran if other is not own} for own in ours}


def report(results: Sequence[Result]) -> Table:
    """A line for each peer: rates, memory, and how many times as fast intcert counts."""
    found = ratios(results)
    columns = ["", "noise", "batch", "images/s", "least", "greatest", "memory", *(f"{name} /" for name in found)]
    rows = []
    for result in results:
        if result.status != "ok":
            rows.append([result.name, "", "", result.status, result.note, *[""] * (len(columns) - 5)])
            continue
        rates = (result.median, min(result.images_per_second), max(result.images_per_second))
        memory = "" if result.peak_memory is None else byte_size(result.peak_memory)
        compared = (f"{of[result.name]:.2f}" if result.name in of else "" for of in found.values())
        noise = "yes" if result.noise else ""
        rows.append([result.name, noise, result.batch, *(f"{rate:,.1f}" for rate in rates), memory, *compared])
    return table(columns, rows, right=range(2, len(columns)))


def plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Draw the medians as bars, with the range of the rounds."""
    import matplotlib

    matplotlib.use("Agg")  # needs no screen; before pyplot is imported
    from matplotlib import pyplot

    ran = [result for result in reversed(results) if result.status == "ok"]
    medians = [result.median for result in ran]
    spread = [
        [middle - min(result.images_per_second) for middle, result in zip(medians, ran, strict=True)],
        [max(result.images_per_second) - middle for middle, result in zip(medians, ran, strict=True)],
    ]
    colours = ["tab:blue" if result.name.startswith("intcert ") else "tab:gray" for result in ran]
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(ran) + 1.2), layout="constrained")
    bars = axes.barh([result.name for result in ran], medians, xerr=spread, color=colours)
    axes.bar_label(bars, [f" {middle:,.0f}" for middle in medians], padding=3)
    axes.margins(x=0.15)
    axes.set_xlabel("images a second")
    axes.set_title(title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def chosen_cores(count: str) -> frozenset[int]:
    """The last ``count`` cores of those that this process may use, or all.

    Raises:
        Failure: count is no number of cores that there are.
    """
    usable = sorted(os.sched_getaffinity(0))
    number = len(usable) if count == "all" else int(count) if count.isdecimal() else 0
    if not 1 <= number <= len(usable):
        raise Failure(f"--cores {count} is not among 1 .. {len(usable)}, nor all")
    return frozenset(usable[-number:])


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--arch", type=click.Choice(list(SIDES)), default="resnet20", show_default=True)
@click.option("--cores", metavar="N|all", default="1", show_default=True, help="Cores that every peer may use.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.01), default=0.5, show_default=True, help="Of a peer's turn.")
@click.option("--only", metavar="TEXT", multiple=True, help="Only peers whose name has this text in it.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all rounds and settings.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Write a picture (.png).")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/peers"), show_default=True)
def main(
    arch: str,
    cores: str,
    rounds: int,
    seconds: float,
    only: tuple[str, ...],
    json_file: Path | None,
    plot_file: Path | None,
    work: Path,
) -> None:
    chosen = chosen_cores(cores)
    peers = [peer for peer in PEERS if not only or any(text.lower() in peer.name.lower() for text in only)]
    if not peers:
        raise Failure(f"--only {only[0]} is in no name; there are {', '.join(peer.name for peer in PEERS)}")
    for path in filter(None, (json_file, plot_file)):
        check_writable(path)
    files = ModelFiles(arch, work.resolve())
    results = measure(peers, files, chosen, rounds, seconds)
    machine = machine_facts(PACKAGES)
    title = f"{arch}, {files.side}x{files.side}, {len(chosen)} core{'s' if len(chosen) > 1 else ''}"
    console().print(f"{title}; {machine['cpu']}; median of {rounds} rounds of {seconds} s")
    console().print(report(results))
    if json_file is not None:
        content = {
            "format_version": FORMAT_VERSION,
            "arch": arch,
            "image": [files.side, files.side, 3],
            "sigma": SIGMA,
            "cores": sorted(chosen),
            "rounds": rounds,
            "seconds": seconds,
            "machine": machine,
            "peers": [asdict(result) for result in results],
            "ratios": ratios(results),
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if plot_file is not None:
        plot(results, title, plot_file)


if __name__ == "__main__":
    main()
