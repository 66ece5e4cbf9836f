"""How the time of ``counts`` grows: with the samples, the chunk that is in the caches at once, the image, the threads.

    python bench/growth.py [--target host] [--json FILE] [--plot FILE]

ResNet-20 with random weights; one thread but where threads are counted. Each figure is the median of the rounds, in CPU
time for one thread and in wall-clock time for several.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from clock import clock
from peer_models import SIGMA, quantized

from intcert.cli.options import check_writable
from intcert.cli.output import byte_size, console, progress_bar, table
from intcert.compile.build import compile_artifact, load_model
from intcert.compile.graph import IntegerGraph
from intcert.runtime import LocalSession, open_artifact
from intcert.runtime.benchmark import machine_facts

SAMPLES = (1, 10, 100, 1000, 10_000, 100_000)
CHUNKS = (1, 2, 4, 8, 16, 32, 64)
SIDES = (32, 64, 96, 128, 224)
SIDE = 32  # of the image where something else grows
KEY = 1
LEAST_SECONDS = 0.005  # of a timed run: shorter calls are repeated


@dataclass(frozen=True)
class Point:
    """One measurement. axis: what grows ("samples", "chunk", "side", "threads"); value: of it; samples: of the call;
    seconds: a call; arena_bytes: working memory of a thread."""

    axis: str
    value: int
    samples: int
    seconds: float
    arena_bytes: int


def median_seconds(session: LocalSession, samples: int, rounds: int) -> float:
    """Seconds of a ``counts`` call."""
    image, now = np.full(session.input_shape, 128, np.uint8), clock(session.threads)

    def run(repeats: int) -> float:
        begin = now()
        for _ in range(repeats):
            session.counts(image, KEY, 0, samples)
        return now() - begin

    run(1)
    repeats = 1
    while run(repeats) < LEAST_SECONDS:
        repeats *= 2
    return statistics.median(run(repeats) for _ in range(rounds)) / repeats


def measure(
    graph_of: Callable[[int], IntegerGraph],
    target: str,
    axes: dict[str, tuple[int, ...]],
    samples: int,
    rounds: int,
) -> Iterator[Point]:
    """Points of every axis. graph_of: the network for images of a side; samples: a call, where they do not grow."""
    with tempfile.TemporaryDirectory() as folder:
        for axis, values in axes.items():
            for value in values:
                side, chunk = value if axis == "side" else SIDE, value if axis == "chunk" else None
                path = Path(folder) / f"{side}-{chunk}.intcert"
                if not path.exists():
                    compile_artifact(graph_of(side), path, target=target, sigma=SIGMA, chunk=chunk)
                n = value if axis == "samples" else max(1, samples * SIDE**2 // side**2)
                with open_artifact(path, threads=value if axis == "threads" else 1) as session:
                    seconds = median_seconds(session, n, rounds)
                    yield Point(axis, value, n, seconds, session.artifact.manifest.arena_bytes)


def plot(points: list[Point], path: Path) -> None:
    """Draw seconds over what grows, both logarithmic, a panel for each axis."""
    import matplotlib

    matplotlib.use("Agg")  # needs no screen; before pyplot is imported
    from matplotlib import pyplot

    axes = list(dict.fromkeys(point.axis for point in points))
    figure, panels = pyplot.subplots(1, len(axes), figsize=(3.2 * len(axes), 3), layout="constrained", squeeze=False)
    for panel, axis in zip(panels[0], axes, strict=True):
        chosen = [point for point in points if point.axis == axis]
        calls = axis == "samples"
        times = [point.seconds if calls else point.seconds / point.samples * 1e6 for point in chosen]
        panel.loglog([point.value for point in chosen], times, "o-")
        panel.set_xlabel(axis)
        panel.set_ylabel("seconds a call" if calls else "microseconds an image")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--target", default="host", show_default=True)
@click.option("--samples", type=click.IntRange(min=1), default=4096, show_default=True, help="A call, for 32x32.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all points.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Write a picture (.png).")
def main(target: str, samples: int, rounds: int, json_file: Path | None, plot_file: Path | None) -> None:
    for path in filter(None, (json_file, plot_file)):
        check_writable(path)
    import torch

    from intcert.train.models import resnet20

    torch.manual_seed(0)
    network = resnet20().eval()
    graphs: dict[int, IntegerGraph] = {}

    def graph_of(side: int) -> IntegerGraph:
        if side not in graphs:
            graphs[side] = load_model(quantized(network, side)).graph
        return graphs[side]

    threads = tuple(range(1, len(os.sched_getaffinity(0)) + 1))
    axes = {"samples": SAMPLES, "chunk": CHUNKS, "side": SIDES, "threads": threads}
    points = []
    with progress_bar() as bar:
        task = bar.add_task("measure", total=sum(map(len, axes.values())), note="")
        for point in measure(graph_of, target, axes, samples, rounds):
            points.append(point)
            bar.advance(task)
    rows = [
        [
            point.axis,
            f"{point.value:,}",
            f"{point.samples:,}",
            f"{point.seconds * 1e3:,.3f}",
            f"{point.seconds / point.samples * 1e6:,.2f}",
            byte_size(point.arena_bytes),
        ]
        for point in points
    ]
    machine = machine_facts(("intcert", "apache-tvm", "numpy"))
    console().print(f"ResNet-20 on {target}; {machine['cpu']}; median of {rounds} rounds")
    console().print(table(("grows", "to", "samples", "ms a call", "us an image", "arena"), rows, right=(1, 2, 3, 4, 5)))
    if json_file is not None:
        content = {"target": target, "rounds": rounds, "machine": machine, "points": [asdict(p) for p in points]}
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if plot_file is not None:
        plot(points, plot_file)


if __name__ == "__main__":
    main()
