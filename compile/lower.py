"""One Relax module a model.

The network is one private TIR function over an arena: a sequence of kernel calls at planned offsets. Three host
functions loop over chunks and call it; Relax functions of the same names wrap them, hold the constants and let the VM
own the arena:

    counts(x uint8[H, W, C], key int64, first int64, n int64, out int32[ceil(n / 64), classes]) -> out
    logits(x int16[n, H, W, C], out int32[n, classes]) -> out
    layers(begin int64, end int64, arena uint8[arena_bytes]) -> arena

All work in place on their last argument. counts overwrites out: row r holds the argmax counts of samples first + 64 r
and on. layers runs steps begin .. end - 1 of one chunk on a caller's arena, which is how one layer is seen or timed.

For programs without TVM, ``lower_for_c`` puts the same kernels under two functions of C.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import ir, relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as tb

from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels.base import Expr, declare_arguments, when
from intcert.compile.kernels.tiles import require_permission
from intcert.compile.kernels.transfer import UNBOUNDED
from intcert.compile.plan import CALLER, Plan, Step
from intcert.runtime.session import ROW

ENTRY_POINTS = ("counts", "logits", "layers")
C_PREFIX = "intcert_"  # of the same functions where C calls them
REFUSED = "this system refuses AMX tiles to the process (arch_prctl); compile the model with --target x86-vnni"


def lower(graph: IntegerGraph, plan: Plan) -> tvm.IRModule:
    """The module of a planned graph, ready for ``build``."""
    return _Lowering(graph, plan).module()


def lower_for_c(graph: IntegerGraph, plan: Plan) -> tvm.IRModule:
    """The same kernels under functions of C: TIR only, no tensors, no Relax, nothing that needs a runtime library.

        counts(uint8 *x, int32 *out, uint8 *constants, uint8 *arena, int64 key, int64 first, int64 n)
        layers(uint8 *constants, uint8 *arena, int64 begin, int64 end)

    do what the entry points of these names do. The caller has checked the arguments, and has the permission to use
    tiles where the target needs one.
    """
    return _Lowering(graph, plan).c_module()


class _Lowering:
    """State shared by the functions of one module: the plan, and the global names of its kernels."""

    def __init__(self, graph: IntegerGraph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.builder = relax.BlockBuilder()
        self._blob = relax.const(plan.blob, "uint8")
        self._kernels: dict[tirx.PrimFunc, ir.GlobalVar] = {}

    def module(self) -> tvm.IRModule:
        height, width, channels = self.graph.input_shape
        classes, int64 = self.graph.classes, ir.PrimType("int64")
        network = self.builder.add_func(self._network(), "network")
        rows, samples = tirx.Var("rows", "int64"), tirx.Var("samples", "int64")
        self._entry(
            "counts",
            self._counts(network),
            [
                relax.Var("x", relax.TensorType((height, width, channels), "uint8")),
                *(relax.Var(name, int64) for name in ("key", "first", "n")),
                relax.Var("out", relax.TensorType((rows, classes), "int32")),
            ],
        )
        self._entry(
            "logits",
            self._logits(network),
            [
                relax.Var("x", relax.TensorType((samples, height, width, channels), "int16")),
                relax.Var("out", relax.TensorType((samples, classes), "int32")),
            ],
        )
        self._entry(
            "layers",
            self._layers(network),
            [
                *(relax.Var(name, int64) for name in ("begin", "end")),
                relax.Var("arena", relax.TensorType((self.plan.arena_bytes,), "uint8")),
            ],
        )
        return self.builder.get()

    def c_module(self) -> tvm.IRModule:
        network = self.builder.add_func(self._network(), "network")
        self._c_counts(network)
        self._c_layers(network)
        return self.builder.get()

    def _entry(self, name: str, host: tirx.PrimFunc, parameters: list[relax.Var]) -> None:
        """The Relax function ``name``: its last parameter is overwritten by the host function and returned."""
        host_name = self.builder.add_func(host, f"{name}_host")
        *inputs, out = parameters
        arguments, results, places = [*inputs, self._blob, out], [out.ty], [len(parameters)]
        if name != "layers":  # the others get an arena from the VM, as a second result that nobody sees
            results.append(relax.TensorType((self.plan.arena_bytes,), "uint8"))
            places.append(-1)
        with self.builder.function(name, parameters):
            with self.builder.dataflow():
                out_ty = results if len(results) > 1 else results[0]
                value = self.builder.emit(relax.call_tir_inplace(host_name, arguments, places, out_ty=out_ty))
                result = self.builder.emit_output(value[0] if len(results) > 1 else value)
            self.builder.emit_func_output(result)

    def _kernel(self, step: Step) -> ir.GlobalVar:
        function = step.kernel.function
        if function not in self._kernels:
            name = f"{step.kernel.name.replace('.', '_')}_{len(self._kernels)}"
            self._kernels[function] = self.builder.add_func(function, name)
        return self._kernels[function]

    def _call(
        self, step: Step, at: Callable[[int], Expr], constants: tirx.Buffer, scalars: tuple[Expr, ...] = ()
    ) -> None:
        """Emit one kernel call; at(offset) is the pointer that belongs to a planned offset."""
        pointers = [at(step.result), *(at(offset) for offset in step.operands)]
        pointers += [tirx.address_of(constants[offset]) for offset in step.constants]
        pointers += [at(offset) for offset in step.scratch]
        tb.evaluate(self._kernel(step)(*pointers, *scalars))

    def _network(self) -> tirx.PrimFunc:
        """Steps begin .. end - 1 on one chunk."""
        with IRBuilder() as ib, tb.prim_func(is_private=True):
            tb.func_name("network")
            arena_pointer = tb.arg("arena", tb.handle("uint8"))
            constants_pointer = tb.arg("constants", tb.handle("uint8"))
            begin, end = (tb.arg(name, tb.int64()) for name in ("begin", "end"))
            arena = tb.decl_buffer((self.plan.arena_bytes,), "uint8", data=arena_pointer)
            constants = tb.decl_buffer((len(self.plan.blob),), "uint8", data=constants_pointer)
            for position, step in enumerate(self.plan.steps):
                with when(tirx.all(begin <= position, position < end)):
                    self._call(step, _pointers(arena), constants)
        return ib.get()

    def _run(
        self, network: ir.GlobalVar, arena: tirx.Buffer, constants: tirx.Buffer, bounds: tuple[Expr, Expr] | None = None
    ) -> None:
        """Emit one run of steps begin .. end - 1 of the network, by default of all."""
        bounds = bounds or tuple(tirx.const(bound, "int64") for bound in (0, len(self.plan.steps)))
        pointers = [tirx.address_of(buffer[0]) for buffer in (arena, constants)]
        tb.evaluate(network(*pointers, *bounds))

    def _host(self, name: str, body: Callable[[], None]) -> tirx.PrimFunc:
        with IRBuilder() as ib, tb.prim_func():
            tb.func_name(f"{name}_host")
            tb.func_attr({"tirx.noalias": True})
            if self.plan.permission:
                # Cheap beside any call, and a process that was forked or opened over RPC starts without it.
                require_permission(self.plan.permission, f"{name}: {REFUSED}")
            body()
        return ib.get()

    def _constants(self) -> tirx.Buffer:
        return self._argument("constants", len(self.plan.blob))

    def _arena(self) -> tirx.Buffer:
        return self._argument("arena", self.plan.arena_bytes)

    @staticmethod
    def _argument(name: str, *shape: Expr | int, dtype: str = "uint8") -> tirx.Buffer:
        return tb.match_buffer(tb.arg(name, tb.handle()), shape, dtype)

    def _chunks(self, n: Expr) -> object:
        return tb.serial(tirx.const(0, "int64"), (n + (self.plan.batch - 1)) // self.plan.batch)

    def _counts(self, network: ir.GlobalVar) -> tirx.PrimFunc:
        def body() -> None:
            image = self._argument("x", *self.graph.input_shape)
            key, first, n = (tb.arg(name, tb.int64()) for name in ("key", "first", "n"))
            constants = self._constants()
            rows = tb.int64()
            out = self._argument("out", rows, self.graph.classes, dtype="int32")
            arena = self._arena()
            for condition, message in (
                (n > 0, "counts: n must be positive"),
                (first >= 0, "counts: first must not be negative"),
                (rows == (n + (ROW - 1)) // ROW, "counts: out must have ceil(n / 64) rows"),
            ):
                with tb.Assert(condition, message):
                    pass
            with tb.serial(tirx.const(0, "int64"), rows) as r, tb.serial(0, self.graph.classes) as c:
                tb.buffer_store(out, tirx.const(0, "int32"), [r, c])
            self._count(network, image, (key, first, n), constants, out, arena)

        return self._host("counts", body)

    def _count(
        self,
        network: ir.GlobalVar,
        image: tirx.Buffer,
        scalars: tuple[Expr, Expr, Expr],
        constants: tirx.Buffer,
        out: tirx.Buffer,
        arena: tirx.Buffer,
    ) -> None:
        """Emit the loop over the chunks of samples; scalars: key, first, n. Adds to out."""
        key, first, n = scalars
        with self._chunks(n) as chunk:
            before = chunk * self.plan.batch
            self._call(self.plan.noise, _pointers(arena, image), constants, (key, first + before))
            self._run(network, arena, constants)
            self._call(self.plan.count, _pointers(arena, out), constants, (before, n))

    def _logits(self, network: ir.GlobalVar) -> tirx.PrimFunc:
        def body() -> None:
            n = tb.int64()
            samples = self._argument("x", n, *self.graph.input_shape, dtype="int16")
            constants = self._constants()
            out = self._argument("out", n, self.graph.classes, dtype="int32")
            arena = self._arena()
            with self._chunks(n) as chunk:
                before = chunk * self.plan.batch
                self._call(self.plan.load, _pointers(arena, samples), constants, (before, n))
                self._run(network, arena, constants)
                self._call(self.plan.store, _pointers(arena, out), constants, (before, n))

        return self._host("logits", body)

    def _layers(self, network: ir.GlobalVar) -> tirx.PrimFunc:
        def body() -> None:
            begin, end = (tb.arg(name, tb.int64()) for name in ("begin", "end"))
            constants, arena = self._constants(), self._arena()
            self._run(network, arena, constants, (begin, end))

        return self._host("layers", body)

    def _c_function(
        self, name: str, pointers: list[tuple[str, str, int]], scalars: tuple[str, ...], body: Callable[..., None]
    ) -> None:
        """Add a function of C: pointers (name, dtype, elements), then int64 scalars; body writes it, given all."""
        with IRBuilder() as ib, tb.prim_func():
            tb.func_name(f"{C_PREFIX}{name}")
            # MakePackedAPI leaves a function alone whose calling convention is decided; LLVM gives it that of C.
            tb.func_attr({"tirx.noalias": True, "calling_conv": ir.CallingConv.C_PACKED_FUNC})
            body(*declare_arguments(pointers, scalars))
        self.builder.add_func(ib.get(), f"{C_PREFIX}{name}")

    def _c_counts(self, network: ir.GlobalVar) -> None:
        def body(
            image: tirx.Buffer, out: tirx.Buffer, constants: tirx.Buffer, arena: tirx.Buffer, *scalars: Expr
        ) -> None:
            n = scalars[-1]
            with tb.serial(tirx.const(0, "int64"), (n + (ROW - 1)) // ROW * self.graph.classes) as i:
                tb.buffer_store(out, tirx.const(0, "int32"), [i])
            self._count(network, image, scalars, constants, out, arena)

        pointers = [("x", "uint8", self.graph.dimension), ("out", "int32", UNBOUNDED), *self._memory()]
        self._c_function("counts", pointers, ("key", "first", "n"), body)

    def _c_layers(self, network: ir.GlobalVar) -> None:
        def body(constants: tirx.Buffer, arena: tirx.Buffer, *bounds: Expr) -> None:
            self._run(network, arena, constants, bounds)

        self._c_function("layers", self._memory(), ("begin", "end"), body)

    def _memory(self) -> list[tuple[str, str, int]]:
        return [("constants", "uint8", len(self.plan.blob)), ("arena", "uint8", self.plan.arena_bytes)]


def _pointers(arena: tirx.Buffer, callers: tirx.Buffer | None = None) -> Callable[[int], Expr]:
    """Pointer at an arena offset, or to the caller's buffer for the offset CALLER."""
    return lambda offset: callers.data if offset == CALLER else tirx.address_of(arena[offset])
