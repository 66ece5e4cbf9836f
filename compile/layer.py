"""A node with everything that its kernel depends on: the unit of tuning."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels import Kernel, Schedule, kernel_for, schedules_for
from intcert.compile.kernels.dot import dot_unit
from intcert.compile.layout import Layout
from intcert.compile.nodes import Conv2d, Linear, LogitScale, Node, operands
from intcert.runtime import packing
from intcert.targets import CudaTarget, Target


@dataclass(frozen=True, eq=False)
class Layer:
    """One node of a graph on a target, ``batch`` images at once. inputs: layouts of its operands.

    On a GPU neither kernel nor schedules depend on the images at once: they follow the memory that the caller has.
    """

    name: str
    node: Node
    inputs: tuple[Layout, ...]
    result: Layout
    batch: int
    scheme: str
    target: Target | CudaTarget

    def kernel(self, schedule: Schedule | None = None, choose: Callable[..., Kernel] = kernel_for) -> Kernel:
        """The kernel, by default with the schedule that is estimated to be best. choose: what makes it."""
        return choose(
            self.node, list(self.inputs), self.result, self.batch, self.scheme, self.target, schedule=schedule
        )

    def schedules(self) -> tuple[Schedule, ...]:
        """All schedules that ``kernel`` takes, the default first; none where there is no choice."""
        return schedules_for(self.node, list(self.inputs), self.result, self.batch, self.target)

    @property
    def workload(self) -> str:
        """What decides the time of a schedule on the target, as canonical JSON: shapes and dtypes, never values."""
        node = self.node
        facts: dict[str, object] = {
            "node": type(node).__name__,
            "batch": 1 if isinstance(self.target, CudaTarget) else self.batch,
            "scheme": "logits" if isinstance(getattr(node, "requant", None), LogitScale) else self.scheme,
            "inputs": [_text(layout) for layout in self.inputs],
            "result": _text(self.result),
        }
        if isinstance(node, Conv2d):
            facts |= {"kernel": node.weight.shape[1:3], "stride": node.stride, "padding": node.padding}
            facts |= {"dilation": node.dilation, "groups": node.groups}
        if isinstance(node, Conv2d | Linear) and isinstance(self.target, Target) and self.target.dot.full_range:
            facts["unit"] = dot_unit(self.target, node.weight).name
        return json.dumps(facts, sort_keys=True)


def _text(layout: Layout) -> str:
    return f"{layout.height}x{layout.width}x{layout.channels} {layout.dtype}"


def layers_of(graph: IntegerGraph, batch: int, target: Target | CudaTarget) -> tuple[Layer, ...]:
    """The layers of a graph, one a node."""
    layouts = [Layout.of(info) for info in graph.info]
    return tuple(
        Layer(name, node, tuple(layouts[i] for i in operands(node)), layouts[position], batch, graph.scheme, target)
        for position, (name, node) in enumerate(zip(graph.names, graph.nodes, strict=True))
    )


def network_key(graph: IntegerGraph, target: Target | CudaTarget) -> str:
    """SHA-256 in hex of the workloads of one image: equal for networks that differ in their weights only."""
    workloads = [json.loads(layer.workload) for layer in layers_of(graph, 1, target)]
    return packing.digest({"input": list(graph.input_shape), "layers": workloads}, [])


def tunable(layer: Layer) -> bool:
    """Whether there is anything to choose."""
    return isinstance(layer.node, Conv2d | Linear) and len(layer.schedules()) > 1
