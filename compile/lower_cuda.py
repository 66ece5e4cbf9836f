"""One Relax module a model for the GPU: host functions that launch kernels, one sequence of launches a chunk.

    counts(x uint8[H, W, C], key int64, first int64, n int64, out int32[ceil(n / 64), classes], arena) -> out
    logits(x int16[n, H, W, C], out int32[n, classes], arena) -> out
    layers(begin int64, end int64, arena) -> arena

All arrays lie on the device. The arena is the caller's, uint8[chunk, arena_bytes]: how many samples go through the
network at a time follows from its size, so that a session can choose it from the memory that is free. Offsets of a plan
count bytes of one sample; a tensor of the chunk begins at its offset times ``chunk``. Launches are asynchronous and
nothing is read back between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import ir, relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as tb

from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels.base import Expr, when
from intcert.compile.plan import CALLER, Plan, Step
from intcert.runtime.session import ROW


def lower_cuda(graph: IntegerGraph, plan: Plan, device: tvm.target.Target) -> tvm.IRModule:
    """The module of a planned graph, ready for ``build``. device: the GPU as TVM knows it, without its host."""
    lowering = _CudaLowering(plan.steps, plan.blob, plan.arena_bytes, device)
    lowering.counts(graph, plan)
    lowering.logits(graph, plan)
    lowering.layers()
    return lowering.builder.get()


def lower_cuda_steps(
    steps: Sequence[Step], blob: np.ndarray, arena_bytes: int, device: tvm.target.Target
) -> tvm.IRModule:
    """A module of some steps and the entry point ``layers`` alone. blob, arena_bytes: as in ``Plan``."""
    lowering = _CudaLowering(steps, blob, arena_bytes, device)
    lowering.layers()
    return lowering.builder.get()


class _CudaLowering:
    """State shared by the functions of one module: its steps and constants, and the global names of its kernels."""

    def __init__(self, steps: Sequence[Step], blob: np.ndarray, arena_bytes: int, device: tvm.target.Target) -> None:
        self.builder = relax.BlockBuilder()
        self._steps, self._device = steps, device
        self._blob_bytes, self._arena_bytes = len(blob), arena_bytes
        self._blob = relax.const(blob, "uint8")
        self._kernels: dict[tirx.PrimFunc, ir.GlobalVar] = {}

    def counts(self, graph: IntegerGraph, plan: Plan) -> None:
        """Add the entry point ``counts``."""
        rows = tirx.Var("rows", "int64")
        parameters = [
            relax.Var("x", relax.TensorType(graph.input_shape, "uint8")),
            *(relax.Var(name, ir.PrimType("int64")) for name in ("key", "first", "n")),
            relax.Var("out", relax.TensorType((rows, graph.classes), "int32")),
        ]
        self._entry("counts", self._counts(graph, plan), parameters)

    def logits(self, graph: IntegerGraph, plan: Plan) -> None:
        """Add the entry point ``logits``."""
        samples = tirx.Var("samples", "int64")
        parameters = [
            relax.Var("x", relax.TensorType((samples, *graph.input_shape), "int16")),
            relax.Var("out", relax.TensorType((samples, graph.classes), "int32")),
        ]
        self._entry("logits", self._logits(graph, plan), parameters)

    def layers(self) -> None:
        """Add the entry point ``layers``."""
        self._entry("layers", self._layers(), [relax.Var(name, ir.PrimType("int64")) for name in ("begin", "end")])

    def _entry(self, name: str, host: tirx.PrimFunc, parameters: list[relax.Var]) -> None:
        """The Relax function ``name``, with the arena as last parameter: tensors from ``out`` on are overwritten, the
        first of them is returned."""
        host_name = self.builder.add_func(host, f"{name}_host")
        chunk = tirx.Var("chunk", "int64")
        parameters = [*parameters, relax.Var("arena", relax.TensorType((chunk, self._arena_bytes), "uint8"))]
        first = next(i for i, p in enumerate(parameters) if p.name in ("out", "arena"))
        written = parameters[first:]
        # The constants go before what is written.
        arguments = [*parameters[:first], self._blob, *written]
        places = [first + 1 + i for i in range(len(written))]
        with self.builder.function(name, parameters):
            with self.builder.dataflow():
                out_ty = [p.ty for p in written] if len(written) > 1 else written[0].ty
                value = self.builder.emit(relax.call_tir_inplace(host_name, arguments, places, out_ty=out_ty))
                result = self.builder.emit_output(value[0] if len(written) > 1 else value)
            self.builder.emit_func_output(result)

    def _kernel(self, step: Step) -> ir.GlobalVar:
        function = step.kernel.function
        if function not in self._kernels:
            name = f"{step.kernel.name.replace('.', '_')}_{len(self._kernels)}"
            self._kernels[function] = self.builder.add_func(function.with_attr("target", self._device), name)
        return self._kernels[function]

    def _launch(
        self,
        step: Step,
        at: Callable[[int], Expr],
        constants: tirx.Buffer,
        samples: Expr,
        scalars: tuple[Expr, ...] = (),
    ) -> None:
        """Emit one launch; at(offset) is the pointer that belongs to a planned offset."""
        pointers = [at(step.result), *(at(offset) for offset in step.operands)]
        pointers += [tirx.address_of(constants[offset]) for offset in step.constants]
        arguments = [*pointers, samples.astype("int32"), *scalars]
        tb.evaluate(ir.Call(self._kernel(step), arguments, ret_ty=ir.PrimType("int32")))

    def _run(
        self, arena: tirx.Buffer, constants: tirx.Buffer, samples: Expr, bounds: tuple[Expr, Expr] | None = None
    ) -> None:
        """Emit the launches of steps begin .. end - 1 on ``samples`` samples, by default of all steps."""
        for position, step in enumerate(self._steps):
            # Not a function of its own: it would have no way to hand on the failure of a launch.
            with when(None if bounds is None else tirx.all(bounds[0] <= position, position < bounds[1])):
                self._launch(step, _pointers(arena), constants, samples)

    @staticmethod
    def _host(name: str, body: Callable[[], None]) -> tirx.PrimFunc:
        with IRBuilder() as ib, tb.prim_func():
            tb.func_name(f"{name}_host")
            tb.func_attr({"tirx.noalias": True})
            body()
        return ib.get()

    def _constants(self) -> tirx.Buffer:
        return _argument("constants", self._blob_bytes)

    def _arena(self) -> tirx.Buffer:
        return _argument("arena", tb.int64(), self._arena_bytes)

    def _counts(self, graph: IntegerGraph, plan: Plan) -> tirx.PrimFunc:
        def body() -> None:
            image = _argument("x", *graph.input_shape)
            key, first, n = (tb.arg(name, tb.int64()) for name in ("key", "first", "n"))
            constants = self._constants()
            rows = tb.int64()
            out = _argument("out", rows, graph.classes, dtype="int32")
            arena = self._arena()
            _require(n > 0, "counts: n must be positive")
            _require(first >= 0, "counts: first must not be negative")
            _require(rows == (n + (ROW - 1)) // ROW, "counts: out must have ceil(n / 64) rows")
            _require(arena.shape[0] % ROW == 0, "counts: the arena must hold a multiple of 64 samples")
            with _chunks(n, arena.shape[0]) as number:
                before = number * arena.shape[0]
                samples = tirx.min(n - before, arena.shape[0])
                pointers = _pointers(arena, image)
                self._launch(plan.noise, pointers, constants, samples, (key, first + before))
                self._run(arena, constants, samples)
                pointers = _pointers(arena, out)
                self._launch(plan.count, pointers, constants, samples, (before // ROW,))

        return self._host("counts", body)

    def _logits(self, graph: IntegerGraph, plan: Plan) -> tirx.PrimFunc:
        def body() -> None:
            n = tb.int64()
            values = _argument("x", n, *graph.input_shape, dtype="int16")
            constants = self._constants()
            out = _argument("out", n, graph.classes, dtype="int32")
            arena = self._arena()
            with _chunks(n, arena.shape[0]) as number:
                before = number * arena.shape[0]
                samples = tirx.min(n - before, arena.shape[0])
                pointers = _pointers(arena, values)
                self._launch(plan.load, pointers, constants, samples, (before,))
                self._run(arena, constants, samples)
                pointers = _pointers(arena, out)
                self._launch(plan.store, pointers, constants, samples, (before,))

        return self._host("logits", body)

    def _layers(self) -> tirx.PrimFunc:
        def body() -> None:
            begin, end = (tb.arg(name, tb.int64()) for name in ("begin", "end"))
            constants, arena = self._constants(), self._arena()
            self._run(arena, constants, arena.shape[0], (begin, end))

        return self._host("layers", body)


def _argument(name: str, *shape: Expr | int, dtype: str = "uint8") -> tirx.Buffer:
    return tb.match_buffer(tb.arg(name, tb.handle()), shape, dtype)


def _require(condition: Expr, message: str) -> None:
    with tb.Assert(condition, message):
        pass


def _chunks(n: Expr, chunk: Expr) -> object:
    return tb.serial(tirx.const(0, "int64"), (n + chunk - 1) // chunk)


def _pointers(arena: tirx.Buffer, callers: tirx.Buffer | None = None) -> Callable[[int], Expr]:
    """Pointer at an arena offset, or to the caller's buffer for the offset CALLER."""

    def at(offset: int) -> Expr:
        if offset == CALLER:
            return tirx.address_of(callers[tuple(0 for _ in callers.shape)])
        return tirx.address_of(arena[0, tirx.const(offset, "int64") * arena.shape[0]])

    return at
