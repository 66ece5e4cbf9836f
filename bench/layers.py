"""Where a network's time goes: every kernel of a compiled model, timed alone on one core.

    python bench/layers.py [MODEL] [--target x86-vnni] [--scheme auto] [--chunk N] [--rounds 30]

For each kernel: microseconds an image, billions of multiply-adds a second, and their share of what the target's dot
unit reaches when it does nothing else, measured in the same process. Times are the least of many short runs, in CPU
seconds of this thread, so that other work on the machine matters less; the cost of an empty call is taken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod

import click
import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine
from unit_peak import unit_peak

from intcert.cli.options import DEMO, model_path
from intcert.compile.build import load_model
from intcert.compile.graph import IntegerGraph
from intcert.compile.library import compile_module
from intcert.compile.lower import lower
from intcert.compile.nodes import Conv2d, Linear
from intcert.compile.plan import make_plan
from intcert.runtime.noise import noise_law
from intcert.targets import find

SIGMA = "0.25"
KEY = 1
RUN_SECONDS = 2e-4  # a timed run lasts at least this long


def multiply_adds(graph: IntegerGraph) -> list[int]:
    """Multiply-adds of every node that a dot unit serves, an image; 0 for the others."""
    return [
        node.weight.size * prod(info.shape[:-1]) if isinstance(node, Conv2d | Linear) else 0
        for node, info in zip(graph.nodes, graph.info, strict=True)
    ]


def least_seconds(work: Callable[[], object], rounds: int) -> float:
    """Least CPU time of one call."""
    repeats, elapsed = 1, 0.0
    while elapsed < RUN_SECONDS:
        repeats *= 2
        elapsed = _seconds(work, repeats)
    return min(_seconds(work, repeats) for _ in range(rounds)) / repeats


def _seconds(work: Callable[[], object], repeats: int) -> float:
    begin = time.thread_time()
    for _ in range(repeats):
        work()
    return time.thread_time() - begin


@click.command()
@click.argument("model", default=DEMO)
@click.option("--target", "target_name", default="host", show_default=True)
@click.option("--scheme", default="auto", show_default=True)
@click.option("--chunk", type=click.IntRange(min=1), help="Images at once; default: the planner's choice.")
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True)
def main(model: str, target_name: str, scheme: str, chunk: int | None, rounds: int) -> None:
    """Print the per-layer table of MODEL (a .pt2 or .graph file, or the word demo) on a target."""
    graph, target = load_model(model_path(model), scheme).graph, find(target_name)
    plan = make_plan(graph, noise_law(SIGMA), target, chunk)
    machine = VirtualMachine(compile_module(lower(graph, plan), target).jit(), tvm.cpu())
    arena = tvm.runtime.tensor(np.zeros(plan.arena_bytes, np.uint8))
    image = tvm.runtime.tensor(np.full(graph.input_shape, 128, np.uint8))
    samples = plan.batch * 4
    rows = tvm.runtime.tensor(np.zeros((-(-samples // 64), graph.classes), np.int32))
    machine["counts"](image, KEY, 0, samples, rows)  # fills the caches

    def layers(begin: int, end: int) -> float:
        return least_seconds(lambda: machine["layers"](begin, end, arena), rounds)

    peak = unit_peak(target)
    peak_gmacs = peak.multiply_adds / least_seconds(peak.run, rounds) * 1e-9
    empty, steps = layers(0, 0), len(plan.steps)
    print(f"{target.name}, {graph.scheme}, {plan.batch} images at once; {peak.name} peak {peak_gmacs:.0f} GMAC/s")
    print(f"{'':3s}{'node':24s}{'kernel':22s}{'shape':>16s}{'us':>9s}{'GMAC/s':>8s}{'peak':>6s}")
    macs = multiply_adds(graph)
    for position, (step, info) in enumerate(zip(plan.steps, graph.info, strict=True)):
        seconds = max(layers(position, position + 1) - empty, 0.0) / plan.batch
        shape = "x".join(map(str, info.shape))
        line = f"{position:2d} {step.name[:23]:24s}{step.kernel.name:22s}{shape:>16s}{seconds * 1e6:9.3f}"
        print(line + (_rate(macs[position], seconds, peak_gmacs) if macs[position] else ""))
    network = (layers(0, steps) - empty) / plan.batch
    counts = least_seconds(lambda: machine["counts"](image, KEY, 0, samples, rows), rounds) / samples
    print(f"network {network * 1e6:.2f} us an image{_rate(sum(macs), network, peak_gmacs)}")
    print(f"counts  {counts * 1e6:.2f} us an image: {1 / counts:,.0f} images/s, noise and argmax included")


def _rate(macs: int, seconds: float, peak_gmacs: float) -> str:
    gmacs = macs / max(seconds, 1e-9) * 1e-9
    return f"{gmacs:8.0f}{gmacs / peak_gmacs:6.0%}"


if __name__ == "__main__":
    main()
