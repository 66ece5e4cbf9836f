"""Kernels as small shared libraries that can be timed and checked alone, here, on a board or on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as tb

from intcert.compile.arena import ALIGN, Block, place
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels import Schedule
from intcert.compile.kernels.tiles import require_permission
from intcert.compile.layer import Layer
from intcert.compile.layout import ITEM_BYTES, Layout, round_up
from intcert.compile.library import link, tvm_target
from intcert.compile.library_cuda import compile_cuda, device_target, link_cuda
from intcert.compile.linker import find_linker
from intcert.compile.lower_cuda import lower_cuda_steps
from intcert.compile.nodes import Linear
from intcert.compile.plan import OVERREAD, Plan, Step, make_plan
from intcert.compile.reference.network import execute
from intcert.runtime.noise import noise_law
from intcert.targets import CudaTarget, Target

ENTRY = "run"
SIGMA = "0.25"  # of the networks that are timed: the kernels do not depend on it


@dataclass(frozen=True, eq=False)
class Program:
    """Kernels in one library, and the memory that they work on.

    library: a shared library with the function run(memory uint8[n], repeats int64); memory: uint8[n], constants and
    operands in place; images: how many a run processes; operands, result: byte offsets, of a single layer's program.

    For a GPU, the library is that of an artifact with the entry point ``layers`` alone (``lower_cuda``), and the memory
    its arena.
    """

    library: bytes
    memory: np.ndarray
    images: int
    operands: tuple[int, ...] = ()
    result: int = 0


def layer_program(layer: Layer, schedule: Schedule | None) -> Program:
    """The kernel of one layer, on operands of the first of ``check_cases``."""
    kernel = layer.kernel(schedule)
    # Places in a GPU's arena are those of one image, times the images.
    on_gpu = isinstance(layer.target, CudaTarget)
    planned, times = (1, layer.batch) if on_gpu else (layer.batch, 1)
    sizes = {f"operand{j}": planned * layout.bytes for j, layout in enumerate(layer.inputs)}
    sizes |= {"result": planned * layer.result.bytes}
    sizes |= {f"scratch{j}": size for j, size in enumerate(kernel.scratch)}
    offsets, arena_bytes = place([Block(name, size, 0, 0) for name, size in sizes.items()])
    blob, constants = bytearray(), []
    for array in kernel.constants:
        constants.append(len(blob))
        blob += array.tobytes() + bytes(-array.nbytes % ALIGN)
    operands = tuple(offsets[f"operand{j}"] for j in range(len(layer.inputs)))
    scratch = tuple(offsets[f"scratch{j}"] for j in range(len(kernel.scratch)))
    step = Step(layer.name, kernel, offsets["result"], operands, tuple(constants), scratch, layer.result)
    content = np.frombuffer(bytes(blob), np.uint8)
    if on_gpu:
        module = lower_cuda_steps([step], content, arena_bytes, device_target(layer.target))
        library = link_cuda(compile_cuda(module, layer.target), layer.target, find_linker(layer.target))
        memory = np.zeros(layer.batch * arena_bytes, np.uint8)
    else:
        library, memory = _assemble([step], arena_bytes + OVERREAD, content, layer.target)
    places = tuple(times * offset for offset in operands)
    program = Program(library, memory, layer.batch, places, times * step.result)
    return replace(program, memory=with_operands(program, layer, check_cases(layer)[0]))


def network_program(graph: IntegerGraph, target: Target, chunk: int | None) -> Program:
    """All kernels of a network on one chunk, without noise; by default of as many images as the planner takes."""
    plan: Plan = make_plan(graph, noise_law(SIGMA), target, chunk)
    library, memory = _assemble(plan.steps, plan.arena_bytes, plan.blob, target)
    return Program(library, memory, plan.batch)


def _assemble(steps: Sequence[Step], arena_bytes: int, blob: np.ndarray, target: Target) -> tuple[bytes, np.ndarray]:
    """The library that runs some steps over memory that holds the arena and then the blob, and that memory."""
    begin = round_up(arena_bytes, ALIGN)
    memory = np.zeros(begin + len(blob), np.uint8)
    memory[begin:] = blob
    functions = list(dict.fromkeys(step.kernel.function for step in steps))
    module = tvm.IRModule({f"kernel_{number}": function for number, function in enumerate(functions)})
    kernels = {function: module.get_global_var(f"kernel_{number}") for number, function in enumerate(functions)}
    with IRBuilder() as ib, tb.prim_func():
        tb.func_name(ENTRY)
        tb.func_attr({"tirx.noalias": True})
        buffer = tb.match_buffer(tb.arg("memory", tb.handle()), (len(memory),), "uint8")
        repeats = tb.arg("repeats", tb.int64())
        if target.tile:
            require_permission(target.tile.permission, "this system refuses AMX tiles to the process")
        with tb.serial(tirx.const(0, "int64"), repeats):
            for step in steps:
                places = [step.result, *step.operands, *(begin + offset for offset in step.constants), *step.scratch]
                tb.evaluate(kernels[step.kernel.function](*(tirx.address_of(buffer[offset]) for offset in places)))
    module.update_func(tvm.ir.GlobalVar(ENTRY), ib.get())
    return link(tvm.compile(module, target=tvm_target(target)), find_linker(target)), memory


def check_cases(layer: Layer, seed: int = 0) -> list[list[np.ndarray]]:
    """Operands to compare a kernel on, [batch, H, W, C] each: random ones, both extremes, and extremes mixed."""
    rng = np.random.default_rng(seed)

    def filled(layout: Layout, kind: str) -> np.ndarray:
        least, most = np.iinfo(layout.dtype).min, np.iinfo(layout.dtype).max
        shape = (layer.batch, layout.height, layout.width, layout.channels)
        if kind == "random":
            return rng.integers(least, most, shape, layout.dtype, endpoint=True)
        if kind == "mixed":
            return rng.choice(np.array([least, most], layout.dtype), shape)
        return np.full(shape, least if kind == "least" else most, layout.dtype)

    return [[filled(layout, kind) for layout in layer.inputs] for kind in ("random", "least", "most", "mixed")]


def with_operands(program: Program, layer: Layer, operands: list[np.ndarray]) -> np.ndarray:
    """The program's memory with these operands, [batch, H, W, C] each; spare channels hold garbage, as they may."""
    memory = program.memory.copy()
    for offset, layout, array in zip(program.operands, layer.inputs, operands, strict=True):
        padded = np.full((*array.shape[:3], layout.stride), 0x55, layout.dtype)
        padded[..., : layout.channels] = array
        memory[offset : offset + padded.nbytes] = padded.view(np.uint8).ravel()
    return memory


def result_of(program: Program, layer: Layer, memory: np.ndarray) -> np.ndarray:
    """The result in a program's memory, [batch, H, W, C]."""
    layout = layer.result
    size = layer.batch * layout.elements * ITEM_BYTES[layout.dtype]
    values = memory[program.result : program.result + size].view(layout.dtype)
    return values.reshape(layer.batch, layout.height, layout.width, layout.stride)[..., : layout.channels]


def expected_result(layer: Layer, operands: list[np.ndarray]) -> np.ndarray:
    """What the reference makes of these operands, [batch, H, W, C]."""
    if isinstance(layer.node, Linear):
        operands = [array.reshape(layer.batch, -1) for array in operands]
    layout = layer.result
    return execute(layer.node, operands, layer.scheme).reshape(
        layer.batch, layout.height, layout.width, layout.channels
    )
