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

from collections.abc import Callable

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
    return _CudaLowering(graph, plan, device).module()


class _CudaLowering:
    """State shared by the functions of one module: the plan, and the global names of its kernels."""

    def __init__(self, graph: IntegerGraph, plan: Plan, device: tvm.target.Target) -> None:
        self.graph, self.plan, self.device = graph, plan, device
        self.builder = relax.BlockBuilder()
        self._blob = relax.const(plan.blob, "uint8")
        self._kernels: dict[tirx.PrimFunc, ir.GlobalVar] = {}

    def module(self) -> tvm.IRModule:
        classes, int64 = self.graph.classes, ir.PrimType("int64")
        rows, samples, chunk = (tirx.Var(name, "int64") for name in ("rows", "samples", "chunk"))

        def arena(extent: tirx.Var) -> relax.Var:
            return relax.Var("arena", relax.TensorType((extent, self.plan.arena_bytes), "uint8"))

        self._entry(
            "counts",
            self._counts(),
            [
                relax.Var("x", relax.TensorType(self.graph.input_shape, "uint8")),
                *(relax.Var(name, int64) for name in ("key", "first", "n")),
                relax.Var("out", relax.TensorType((rows, classes), "int32")),
                arena(chunk),
            ],
        )
        self._entry(
            "logits",
            self._logits(),
            [
                relax.Var("x", relax.TensorType((samples, *self.graph.input_shape), "int16")),
                relax.Var("out", relax.TensorType((samples, classes), "int32")),
                arena(chunk),
            ],
        )
        bounds = [relax.Var(name, int64) for name in ("begin", "end")]
        self._entry("layers", self._layers(), [*bounds, arena(chunk)])
        return self.builder.get()

    def _entry(self, name: str, host: tirx.PrimFunc, parameters: list[relax.Var]) -> None:
        """The Relax function ``name``: tensors from ``out`` on are overwritten, the first of them is returned."""
        host_name = self.builder.add_func(host, f"{name}_host")
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
            self._kernels[function] = self.builder.add_func(function.with_attr("target", self.device), name)
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
        for position, step in enumerate(self.plan.steps):
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
        return _argument("constants", len(self.plan.blob))

    def _arena(self) -> tirx.Buffer:
        return _argument("arena", tb.int64(), self.plan.arena_bytes)

    def _counts(self) -> tirx.PrimFunc:
        def body() -> None:
            image = _argument("x", *self.graph.input_shape)
            key, first, n = (tb.arg(name, tb.int64()) for name in ("key", "first", "n"))
            constants = self._constants()
            rows = tb.int64()
            out = _argument("out", rows, self.graph.classes, dtype="int32")
            arena = self._arena()
            _require(n > 0, "counts: n must be positive")
            _require(first >= 0, "counts: first must not be negative")
            _require(rows == (n + (ROW - 1)) // ROW, "counts: out must have ceil(n / 64) rows")
            _require(arena.shape[0] % ROW == 0, "counts: the arena must hold a multiple of 64 samples")
            with _chunks(n, arena.shape[0]) as number:
                before = number * arena.shape[0]
                samples = tirx.min(n - before, arena.shape[0])
                pointers = _pointers(arena, image)
                self._launch(self.plan.noise, pointers, constants, samples, (key, first + before))
                self._run(arena, constants, samples)
                pointers = _pointers(arena, out)
                self._launch(self.plan.count, pointers, constants, samples, (before // ROW,))

        return self._host("counts", body)

    def _logits(self) -> tirx.PrimFunc:
        def body() -> None:
            n = tb.int64()
            values = _argument("x", n, *self.graph.input_shape, dtype="int16")
            constants = self._constants()
            out = _argument("out", n, self.graph.classes, dtype="int32")
            arena = self._arena()
            with _chunks(n, arena.shape[0]) as number:
                before = number * arena.shape[0]
                samples = tirx.min(n - before, arena.shape[0])
                pointers = _pointers(arena, values)
                self._launch(self.plan.load, pointers, constants, samples, (before,))
                self._run(arena, constants, samples)
                pointers = _pointers(arena, out)
                self._launch(self.plan.store, pointers, constants, samples, (before,))

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
