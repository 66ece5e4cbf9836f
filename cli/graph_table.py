"""An integer graph as a table: what ``inspect`` and ``compile --dry-run`` print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from intcert.cli.output import table
from intcert.compile.nodes import Conv2d, Linear, Node, Shape

if TYPE_CHECKING:
    from intcert.compile.graph import IntegerGraph

_COLUMNS = ("#", "node", "kind", "shape", "dtype", "MACs", "constants (bytes)")


def graph_table(graph: IntegerGraph, kernels: Sequence[str] = ()) -> Table:
    """The nodes of a graph, and a last line with sums. kernels: the name of each node's kernel, where compiled."""
    macs = [multiply_adds(node, info.shape) for node, info in zip(graph.nodes, graph.info, strict=True)]
    sizes = [constant_bytes(node) for node in graph.nodes]
    rows = [
        [position, name, type(node).__name__, " x ".join(map(str, info.shape)), info.dtype, _count(work), _count(size)]
        for position, (name, node, info, work, size) in enumerate(
            zip(graph.names, graph.nodes, graph.info, macs, sizes, strict=True)
        )
    ]
    rows.append(["", "total", "", "", "", _count(sum(macs)), _count(sum(sizes))])
    columns = list(_COLUMNS)
    if kernels:
        columns.append("kernel")
        for row, kernel in zip(rows, [*kernels, ""], strict=True):
            row.append(kernel)
    return table(columns, rows, right=(0, 5, 6))


def multiply_adds(node: Node, shape: Shape) -> int:
    """Multiply-accumulate operations of a node on one image; shape: its result's. Only products with weights count."""
    if isinstance(node, Conv2d):
        return prod(shape) * prod(node.weight.shape[1:])
    return node.weight.size if isinstance(node, Linear) else 0


def constant_bytes(part: object) -> int:
    """Bytes of all arrays in a node."""
    if isinstance(part, np.ndarray):
        return part.nbytes
    return sum(constant_bytes(getattr(part, entry.name)) for entry in fields(part)) if is_dataclass(part) else 0


def _count(value: int) -> str:
    return f"{value:,}" if value else ""
