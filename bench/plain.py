"""Every layer against its plain schedule: loops over the same layout, vectorized by LLVM alone (plain_kernels.py).

    python bench/plain.py [MODEL] [--target x86] [--json FILE]

Both networks are compiled for the same target, run on the same random images, and have to agree in every activation.
Then each layer is timed in both, in turns, on one core: the least CPU time of many short runs. A convolution has two
plain loop orders, and the faster one counts. The last column is the plain time over ours; a layer below 0.98 is
named at the end, with exit code 1. Layers that only move elements are loops in both and not compared.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import tvm
from layers import least_seconds
from plain_kernels import ORDERS, plain_kernels
from tvm.runtime.vm import VirtualMachine

from intcert.cli.failure import ANSWER_IS_NO
from intcert.cli.options import DEMO, check_writable, model_path
from intcert.cli.output import console, table
from intcert.compile.build import load_model
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels import kernel_for
from intcert.compile.library import compile_module
from intcert.compile.lower import lower
from intcert.compile.plan import Plan, make_plan
from intcert.runtime.noise import noise_law
from intcert.targets import Target, find

SIGMA = "0.25"
TOLERANCE = 0.02  # of a layer's time: two runs of the same kernel differ by as much


@dataclass(frozen=True)
class Layer:
    """Seconds an image of one layer: ours, and the plain schedule's for each loop order; empty where they are one."""

    name: str
    kernel: str
    shape: tuple[int, ...]
    ours: float
    plain: dict[str, float]

    @property
    def speedup(self) -> float | None:
        """Plain time over ours."""
        return min(self.plain.values()) / max(self.ours, 1e-12) if self.plain else None

    @property
    def slower(self) -> bool:
        return bool(self.plain) and self.speedup < 1 - TOLERANCE


class Network:
    """A compiled network whose layers run one by one in an arena of its own."""

    def __init__(self, graph: IntegerGraph, plan: Plan, target: Target) -> None:
        self.plan = plan
        self._machine = VirtualMachine(compile_module(lower(graph, plan), target).jit(), tvm.cpu())
        self._arena = tvm.runtime.tensor(np.zeros(plan.arena_bytes, np.uint8))

    def load(self, images: np.ndarray) -> None:
        """Put one chunk of pixel + noise, int16[batch, H, W, C], where the first layer reads it."""
        arena = self._arena.numpy()
        begin = self.plan.input_offset
        arena[begin : begin + images.nbytes] = images.view(np.uint8).ravel()
        self._arena.copyfrom(arena)

    def run(self, begin: int, end: int) -> None:
        """Run some layers."""
        self._machine["layers"](begin, end, self._arena)

    def result(self, position: int) -> np.ndarray:
        """What a layer that just ran left: [batch, height, width, channels]."""
        step = self.plan.steps[position]
        layout, batch = step.layout, self.plan.batch
        stored = self._arena.numpy()[step.result : step.result + batch * layout.bytes].view(layout.dtype)
        return stored.reshape(batch, layout.height, layout.width, layout.stride)[..., : layout.channels]


def first_difference(networks: list[Network], images: np.ndarray) -> str | None:
    """Name of the first layer in which not all networks agree, or None."""
    for network in networks:
        network.load(images)
    for position, step in enumerate(networks[0].plan.steps):
        for network in networks:
            network.run(position, position + 1)
        expected, *others = (network.result(position) for network in networks)
        if not all(np.array_equal(expected, other) for other in others):
            return step.name
    return None


def compare(graph: IntegerGraph, target: Target, rounds: int) -> list[Layer]:
    """Check and time every layer.

    Raises:
        click.ClickException: a plain kernel and ours differ.
    """
    law = noise_law(SIGMA)
    plan = make_plan(graph, law, target)
    chooses = [kernel_for, *(plain_kernels(order) for order in ORDERS)]
    networks = [Network(graph, make_plan(graph, law, target, plan.batch, choose=choose), target) for choose in chooses]
    rng = np.random.default_rng(0)
    images = rng.normal(128, 90, (plan.batch, *graph.input_shape)).round().astype(np.int16)
    different = first_difference(networks, images)
    if different is not None:
        raise click.ClickException(f"the plain schedule of {different} gives other integers than ours on {target.name}")
    # What a call costs that runs no layer at all.
    empty = min(least_seconds(lambda network=network: network.run(0, 0), rounds) for network in networks)
    found = []
    for position, (step, info) in enumerate(zip(plan.steps, graph.info, strict=True)):
        ours, *others = networks
        different = step.kernel.function is not others[0].plan.steps[position].kernel.function
        times = _least_times(networks if different else [ours], position, rounds)
        images = [max(seconds - empty, 0.0) / plan.batch for seconds in times]
        plain = dict(zip(ORDERS, images[1:], strict=True)) if different else {}
        found.append(Layer(step.name, step.kernel.name, info.shape, images[0], plain))
    return found


def _least_times(networks: list[Network], position: int, rounds: int) -> list[float]:
    """Least seconds of a layer in each network; they take turns."""
    works = [lambda network=network: network.run(position, position + 1) for network in networks]
    times = [[least_seconds(work, 1) for work in works] for _ in range(rounds)]
    return [min(of_network) for of_network in zip(*times, strict=True)]


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("model", default=DEMO)
@click.option("--target", "target_name", default="host", show_default=True)
@click.option("--scheme", default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the table.")
def main(model: str, target_name: str, scheme: str, rounds: int, json_file: Path | None) -> None:
    if json_file is not None:
        check_writable(json_file)
    graph, target = load_model(model_path(model), scheme).graph, find(target_name)
    layers = compare(graph, target, rounds)
    columns = ("#", "layer", "kernel", "shape", "us an image", *(f"plain, {order}" for order in ORDERS), "plain / ours")
    rows = [
        [
            position,
            layer.name,
            layer.kernel,
            " x ".join(map(str, layer.shape)),
            f"{layer.ours * 1e6:,.2f}",
            *(f"{layer.plain[order] * 1e6:,.2f}" if layer.plain else "" for order in ORDERS),
            f"{layer.speedup:.2f}" if layer.plain else "",
        ]
        for position, layer in enumerate(layers)
    ]
    console().print(f"{target.name}, {graph.scheme}; all results are equal")
    console().print(table(columns, rows, right=(0, 4, 5, 6, 7)))
    slower = [layer.name for layer in layers if layer.slower]
    print(f"slower than plain: {', '.join(slower) or 'none'}")
    if json_file is not None:
        content = {"target": target.name, "scheme": graph.scheme, "layers": [asdict(layer) for layer in layers]}
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if slower:
        sys.exit(ANSWER_IS_NO)


if __name__ == "__main__":
    main()
