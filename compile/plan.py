"""The static plan of a graph on a target: which kernels run in which order, and where every byte lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intcert.compile.arena import ALIGN, Block, place
from intcert.compile.database import Database
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels import Kernel, cuda, kernel_for
from intcert.compile.kernels.histogram import histogram
from intcert.compile.kernels.noise import noisy_input
from intcert.compile.kernels.transfer import load_samples, store_logits
from intcert.compile.layer import layers_of, network_key
from intcert.compile.layout import Layout
from intcert.compile.nodes import InputQuantize, operands
from intcert.runtime.noise import NoiseLaw
from intcert.targets import CudaTarget, Target

MAX_BATCH = 64
OVERREAD = 64  # bytes that a kernel may read past the end of an operand
CALLER = -1  # in place of an arena offset: the caller's own buffer


@dataclass(frozen=True)
class Step:
    """One kernel call: byte offsets of its result, operands and scratch in the arena, of its constants in the blob."""

    name: str
    kernel: Kernel
    result: int
    operands: tuple[int, ...]
    constants: tuple[int, ...]
    scratch: tuple[int, ...]
    layout: Layout


@dataclass(frozen=True)
class Plan:
    """All steps of one chunk of ``batch`` samples.

    steps: the network. Around it, with one operand or result that is the caller's (offset CALLER): noise and load make
    pixel + noise, int16[batch, H, W, C]; count and store take the logits. input_offset: where pixel + noise lies in the
    arena; blob: uint8, every constant at a multiple of 64 bytes; permission: the system call that
    the target's tile unit needs, if any.
    """

    batch: int
    steps: tuple[Step, ...]
    noise: Step
    load: Step
    count: Step
    store: Step
    input_offset: int
    arena_bytes: int
    blob: np.ndarray
    permission: tuple[int, ...]


class _Blob:
    """Collects constants; equal arrays are stored once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._known: dict[bytes, int] = {}

    def put(self, array: np.ndarray) -> int:
        content = np.ascontiguousarray(array).tobytes()
        if content not in self._known:
            self.data.extend(bytes(-len(self.data) % ALIGN))
            self._known[content] = len(self.data)
            self.data.extend(content)
        return self._known[content]

    def array(self) -> np.ndarray:
        return np.frombuffer(bytes(self.data) + bytes(ALIGN), np.uint8)


@dataclass(frozen=True)
class _Kernels:
    """Kernels of all nodes with the layouts of their results, and the kernels around them."""

    nodes: list[Kernel]
    layouts: list[Layout]
    noise: Kernel
    load: Kernel
    count: Kernel
    store: Kernel


def _kernels(
    graph: IntegerGraph,
    law: NoiseLaw,
    target: Target | CudaTarget,
    batch: int,
    database: Database | None,
    choose: Callable[..., Kernel],
) -> _Kernels:
    layers = layers_of(graph, batch, target)
    nodes = [layer.kernel(database and database.schedule(layer), choose) for layer in layers]
    layouts = [layer.result for layer in layers]
    logits = layouts[-1]
    if isinstance(target, CudaTarget):
        around = (
            cuda.noisy_input(law, graph.dimension),
            cuda.load_samples(graph.dimension),
            cuda.histogram(logits),
            cuda.store_logits(logits),
        )
    else:
        around = (
            noisy_input(law, graph.dimension, batch, target),
            load_samples(graph.dimension, batch),
            histogram(logits, batch),
            store_logits(logits, batch),
        )
    return _Kernels(nodes, layouts, *around)


def make_plan(
    graph: IntegerGraph,
    law: NoiseLaw,
    target: Target | CudaTarget,
    batch: int | None = None,
    database: Database | None = None,
    choose: Callable[..., Kernel] = kernel_for,
) -> Plan:
    """Plan of a graph.

    batch: samples a chunk; by default what the database says, else as many as keep the arena within the target's
    budget. database: schedules of the layers that it knows; the others get what is estimated to be best. choose: makes
    the kernel of a layer, as ``kernel_for`` does.

    On a GPU batch has no meaning: only the session that owns the memory knows the size of a chunk. The plan is of one
    sample, and byte offsets are to be multiplied by the samples of the chunk.
    """
    if isinstance(target, CudaTarget):
        return _place(graph, _kernels(graph, law, target, 1, database, choose), 1, ())
    if batch is None and database:
        batch = database.chunk(network_key(graph, target))
    if batch is None:
        single = make_plan(graph, law, target, 1, choose=choose)
        fitting = max(1, target.arena_budget // single.arena_bytes)
        batch = min(MAX_BATCH, 1 << (fitting.bit_length() - 1))
    kernels = _kernels(graph, law, target, batch, database, choose)
    return _place(graph, kernels, batch, target.tile.permission if target.tile else ())


def _place(graph: IntegerGraph, chosen: _Kernels, batch: int, permission: tuple[int, ...]) -> Plan:
    """The plan of these kernels: where everything lies that they read and write."""
    kernels, layouts, noise = chosen.nodes, chosen.layouts, chosen.noise
    last_use = dict.fromkeys(range(len(kernels)), len(kernels))
    last_use |= {operand: position for position, node in enumerate(graph.nodes) for operand in operands(node)}
    last_input = max(position for position, node in enumerate(graph.nodes) if isinstance(node, InputQuantize))
    blocks = [Block("input", batch * graph.dimension * 2, -1, last_input)]
    blocks += [Block(f"noise.{number}", size, -1, -1) for number, size in enumerate(noise.scratch)]
    for position, kernel in enumerate(kernels):
        blocks.append(Block(f"result{position}", batch * layouts[position].bytes, position, last_use[position]))
        for number, size in enumerate(kernel.scratch):
            blocks.append(Block(f"scratch{position}.{number}", size, position, position))
    offsets, arena_bytes = place(blocks)
    blob = _Blob()
    steps = tuple(
        Step(
            name=graph.names[position],
            kernel=kernel,
            result=offsets[f"result{position}"],
            operands=tuple(offsets[f"result{i}"] for i in operands(node)) or (offsets["input"],),
            constants=tuple(blob.put(array) for array in kernel.constants),
            scratch=tuple(offsets[f"scratch{position}.{number}"] for number in range(len(kernel.scratch))),
            layout=layouts[position],
        )
        for position, (node, kernel) in enumerate(zip(graph.nodes, kernels, strict=True))
    )
    pixels, logits = Layout(*graph.input_shape, "int16"), steps[-1].layout

    def edge(name: str, kernel: Kernel, result: int, operand: int, layout: Layout) -> Step:
        constants = tuple(blob.put(array) for array in kernel.constants)
        scratch = tuple(offsets[f"{name}.{number}"] for number in range(len(kernel.scratch)))
        return Step(name, kernel, result, (operand,), constants, scratch, layout)

    return Plan(
        batch=batch,
        steps=steps,
        noise=edge("noise", noise, offsets["input"], CALLER, pixels),
        load=edge("load", chosen.load, offsets["input"], CALLER, pixels),
        count=edge("count", chosen.count, CALLER, steps[-1].result, logits),
        store=edge("store", chosen.store, CALLER, steps[-1].result, logits),
        input_offset=offsets["input"],
        arena_bytes=arena_bytes + OVERREAD,
        blob=blob.array(),
        permission=permission,
    )
