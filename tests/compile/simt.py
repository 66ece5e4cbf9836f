"""A GPU that runs on NumPy: the TIR of host functions and kernels, executed as CUDA and PTX define it.

All threads of a grid run in step, as the lanes of arrays. What a real GPU would let pass or answer at random is an
error here, as with compute-sanitizer: an access outside of an array, or not aligned to its width; two threads that
touch the same place of shared memory without a barrier between them, one of them writing; a barrier that not all
threads reach. Shared memory begins as garbage, and so does the target of an asynchronous copy until the group that it
belongs to has been waited for. Matrix instructions follow the fragment tables of the PTX ISA ("Matrix Fragments").
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import ir, tirx

GARBAGE = 0xA5
WARP = 32


class SimtError(AssertionError):
    """The program does what a GPU does not define."""


@dataclass
class Pointer:
    """A byte address: all bytes of an allocation, and an offset."""

    memory: np.ndarray
    offset: int


@dataclass
class Array:
    """Where a buffer of a kernel lives. data: [copies, elements] of its dtype; copy: which one a lane sees."""

    data: np.ndarray
    copy: np.ndarray
    offset: int = 0
    scope: str = "global"
    # Shared memory: who wrote and read each element last, and between which barriers. -1: nobody, -2: several threads.
    writer: np.ndarray | None = None
    written: np.ndarray | None = None
    reader: np.ndarray | None = None
    read: np.ndarray | None = None


@dataclass
class Grid:
    """State of a running kernel (or of a host function: one lane)."""

    lanes: int
    threads: int
    values: dict[int, object] = field(default_factory=dict)
    phase: int = 1
    group: list[tuple] = field(default_factory=list)
    groups: list[list[tuple]] = field(default_factory=list)

    @property
    def block(self) -> np.ndarray:
        return np.arange(self.lanes) // self.threads

    @property
    def thread(self) -> np.ndarray:
        return np.arange(self.lanes) % self.threads


Mask = np.ndarray
Evaluate = Callable[[Grid, Mask], np.ndarray]
Execute = Callable[[Grid, Mask], None]

_BINARY = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "FloorDiv": operator.floordiv,
    "FloorMod": operator.mod,
    "Min": np.minimum,
    "Max": np.maximum,
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "And": np.logical_and,
    "Or": np.logical_or,
    "BitwiseAnd": operator.and_,
    "BitwiseOr": operator.or_,
    "BitwiseXor": operator.xor,
    "LShift": np.left_shift,
    "RShift": np.right_shift,
}
_OPERATORS = {
    "tirx.shift_left": np.left_shift,
    "tirx.shift_right": np.right_shift,
    "tirx.bitwise_and": operator.and_,
    "tirx.bitwise_or": operator.or_,
    "tirx.bitwise_xor": operator.xor,
}


class Machine:
    """Runs the host functions of a module by name."""

    def __init__(self, module: tvm.IRModule) -> None:
        self._functions = {
            name.name_hint: function
            for name, function in module.functions.items()
            if isinstance(function, tirx.PrimFunc)
        }
        self._compiled: dict[str, _Function] = {}

    def run(self, name: str, *arguments: np.ndarray | int) -> None:
        """Call a host function; arrays are changed in place. Raises SimtError."""
        function = self._get(name)
        grid = Grid(1, 1)
        for parameter, argument in zip(function.source.params, arguments, strict=True):
            if not isinstance(argument, np.ndarray):
                grid.values[function.slot(parameter)] = _scalar(argument, parameter.ty.dtype)
                continue
            assert argument.dtype == parameter.dtype, (name, argument.dtype, parameter.dtype)
            for extent, size in zip(parameter.shape, argument.shape, strict=True):
                if isinstance(extent, ir.Var):
                    grid.values[function.slot(extent)] = _scalar(size, "int64")
                else:
                    assert int(extent) == size, (name, parameter, argument.shape)
            memory = argument.reshape(-1).view(np.uint8)
            grid.values[function.slot(parameter)] = Pointer(memory, 0)
        with np.errstate(over="ignore"):
            function.body(grid, np.ones(1, bool))

    def launch(self, name: str, arguments: list[object]) -> None:
        """Run a kernel on pointers and scalars."""
        function = self._get(name)
        host = Grid(1, 1)
        for parameter, argument in zip(function.source.params, arguments, strict=True):
            host.values[function.slot(parameter)] = argument
        one = np.ones(1, bool)
        blocks, threads = (int(extent(host, one)[0, 0]) for _, extent in function.launch)
        grid = Grid(blocks * threads, threads, host.values)
        for (variable, _), number in zip(function.launch, (grid.block, grid.thread), strict=True):
            grid.values[function.slot(variable)] = number.astype(np.int32)[:, None]
        function.body(grid, np.ones(grid.lanes, bool))

    def _get(self, name: str) -> _Function:
        if name not in self._compiled:
            self._compiled[name] = _Function(self, name, self._functions[name])
        return self._compiled[name]


def _scalar(value: int, dtype: str) -> np.ndarray:
    return np.array([[value]]).astype(str(dtype))


class _Function:
    """A PrimFunc as nested closures. Every value is an array [lanes or 1, vector lanes]."""

    def __init__(self, machine: Machine, name: str, source: tirx.PrimFunc) -> None:
        self.machine, self.name, self.source = machine, name, source
        self.launch: list[tuple[ir.Var, Evaluate]] = []
        self._slots: dict[ir.Var, int] = {}
        self.body = self.statement(source.body)

    def slot(self, variable: ir.Var) -> int:
        return self._slots.setdefault(variable, len(self._slots))

    # -- statements -------------------------------------------------------------------------------------------------

    def statement(self, node: tirx.Stmt) -> Execute:
        return getattr(self, f"_{type(node).__name__.lower()}")(node)

    def _seqstmt(self, node: tirx.SeqStmt) -> Execute:
        parts = [self.statement(part) for part in node.seq]

        def run(grid: Grid, mask: Mask) -> None:
            for part in parts:
                part(grid, mask)

        return run

    def _attrstmt(self, node: tirx.AttrStmt) -> Execute:
        assert node.attr_key == "thread_extent", node.attr_key
        self.launch.append((node.node.var, self.expression(node.value)))
        return self.statement(node.body)

    def _allocbuffer(self, node: tirx.AllocBuffer) -> Execute:
        buffer = node.buffer
        slot, elements, dtype = self.slot(buffer), int(np.prod([int(n) for n in buffer.shape])), str(buffer.dtype)
        scope = buffer.scope() if callable(buffer.scope) else buffer.scope

        def run(grid: Grid, mask: Mask) -> None:
            copies = grid.lanes // grid.threads if scope == "shared" else grid.lanes
            copy = grid.block if scope == "shared" else np.arange(grid.lanes)
            data = np.full((copies, elements * np.dtype(dtype).itemsize), GARBAGE, np.uint8).view(dtype)
            array = Array(data, copy, 0, scope)
            if scope == "shared":
                array.writer, array.reader = (np.full((copies, elements), -1) for _ in range(2))
                array.written, array.read = (np.zeros((copies, elements), int) for _ in range(2))
            grid.values[slot] = array

        return run

    def _declbuffer(self, node: tirx.DeclBuffer) -> Execute:
        slot, pointer, dtype = self.slot(node.buffer), self.slot(node.data), str(node.buffer.dtype)

        def run(grid: Grid, mask: Mask) -> None:
            address = grid.values[pointer]
            grid.values[slot] = self._view(address, dtype, grid)

        return run

    def _view(self, address: Pointer, dtype: str, grid: Grid) -> Array:
        size = np.dtype(dtype).itemsize
        self._check(address.offset % size == 0, f"pointer {address.offset} is not aligned to {dtype}")
        usable = len(address.memory) // size * size
        data = address.memory[:usable].view(dtype)[None]
        return Array(data, np.zeros(grid.lanes, int), address.offset // size)

    def _for(self, node: tirx.For) -> Execute:
        slot, begin, extent = self.slot(node.loop_var), self.expression(node.min), self.expression(node.extent)
        body, dtype = self.statement(node.body), str(node.loop_var.ty.dtype)

        def run(grid: Grid, mask: Mask) -> None:
            first = np.broadcast_to(begin(grid, mask), (grid.lanes, 1))[:, 0]
            end = first + np.broadcast_to(extent(grid, mask), (grid.lanes, 1))[:, 0]
            active = mask & (end > first)
            if not active.any():
                return
            for i in range(int(first[active].min()), int(end[active].max())):
                inside = active & (first <= i) & (i < end)
                grid.values[slot] = _scalar(i, dtype)
                if inside.any():
                    body(grid, inside)

        return run

    def _ifthenelse(self, node: tirx.IfThenElse) -> Execute:
        condition, then = self.expression(node.condition), self.statement(node.then_case)
        otherwise = self.statement(node.else_case) if node.else_case else None

        def run(grid: Grid, mask: Mask) -> None:
            holds = np.broadcast_to(condition(grid, mask), (grid.lanes, 1))[:, 0]
            if (mask & holds).any():
                then(grid, mask & holds)
            if otherwise and (mask & ~holds).any():
                otherwise(grid, mask & ~holds)

        return run

    def _assertstmt(self, node: tirx.AssertStmt) -> Execute:
        condition = self.expression(node.condition)
        message = "".join(str(part.value) for part in node.message_parts)

        def run(grid: Grid, mask: Mask) -> None:
            self._check(bool(condition(grid, mask).all()), message)

        return run

    def _bufferstore(self, node: tirx.BufferStore) -> Execute:
        slot, value = self.slot(node.buffer), self.expression(node.value)
        index = self._index(node.buffer, node.indices)

        def run(grid: Grid, mask: Mask) -> None:
            self._store(grid, mask, grid.values[slot], index(grid, mask), value(grid, mask))

        return run

    def _evaluate(self, node: tirx.Evaluate) -> Execute:
        call = node.value
        if isinstance(call, tirx.IntImm):
            return lambda grid, mask: None
        if isinstance(call.op, ir.GlobalVar):
            return self._launch(call)
        return {
            "tirx.tvm_storage_sync": self._barrier,
            "tirx.ptx.ldmatrix": self._load_matrices,
            "tirx.ptx.mma_int": self._multiply,
            "tirx.ptx.cp_async_ca": self._copy,
            "tirx.ptx.cp_async_cg": self._copy,
            "tirx.ptx.cp_async_commit_group": self._commit,
            "tirx.ptx.cp_async_wait_group": self._wait,
        }[call.op.name](call)

    def _launch(self, call: ir.Call) -> Execute:
        name = call.op.name_hint
        arguments = [self.expression(argument) for argument in call.args]

        def run(grid: Grid, mask: Mask) -> None:
            self.machine.launch(name, [argument(grid, mask) for argument in arguments])

        return run

    # -- barriers, asynchronous copies and matrices -------------------------------------------------------------------

    def _barrier(self, call: ir.Call) -> Execute:
        def run(grid: Grid, mask: Mask) -> None:
            self._check(bool(mask.all()), "a barrier that not all threads reach")
            grid.phase += 1

        return run

    def _copy(self, call: ir.Call) -> Execute:
        target, source, size = call.args[:3]
        # The target's address comes as an offset in the window of shared memory.
        to, to_at = self._place(target.args[0])
        came, came_at = self._place(source)
        words = int(size) // 4

        def run(grid: Grid, mask: Mask) -> None:
            lanes = np.arange(words)
            target_index, source_index = to_at(grid, mask) + lanes, came_at(grid, mask) + lanes
            value = self._load(grid, mask, grid.values[came], source_index)
            poison = np.full((1, words), GARBAGE * 0x01010101, np.uint32)
            self._store(grid, mask, grid.values[to], target_index, poison)
            grid.group.append((mask.copy(), grid.values[to], target_index, value))

        return run

    def _commit(self, call: ir.Call) -> Execute:
        def run(grid: Grid, mask: Mask) -> None:
            self._check(bool(mask.all()), "threads with different groups of copies")
            grid.groups.append(grid.group)
            grid.group = []

        return run

    def _wait(self, call: ir.Call) -> Execute:
        pending = int(call.args[0])

        def run(grid: Grid, mask: Mask) -> None:
            self._check(bool(mask.all()), "threads that wait for different groups of copies")
            while len(grid.groups) > pending:
                for copied, array, index, value in grid.groups.pop(0):
                    self._store(grid, copied, array, index, value)

        return run

    def _load_matrices(self, call: ir.Call) -> Execute:
        registers = [self._register(argument) for argument in call.args[:4]]
        slot, at = self._place(call.args[4].args[0])

        def run(grid: Grid, mask: Mask) -> None:
            self._check(bool(mask.all()), "ldmatrix in a divergent warp")
            row = np.broadcast_to(at(grid, mask), (grid.lanes, 1)).reshape(-1, WARP)
            self._check(bool((row % 4 == 0).all()), "a row of ldmatrix is not aligned to 16 bytes")
            lane = np.arange(WARP)
            for matrix, (register, register_at) in enumerate(registers):
                word = row[:, 8 * matrix + lane // 4] + lane % 4
                value = self._load(grid, mask, grid.values[slot], word.reshape(-1, 1))
                self._store(grid, mask, grid.values[register], register_at(grid, mask), value)

        return run

    def _multiply(self, call: ir.Call) -> Execute:
        tokens = [str(argument.value) for argument in call.args if isinstance(argument, ir.StringImm)]
        shape = next(token for token in tokens if token[0] == "m" and token[1].isdigit())
        a_type, b_type = tokens[tokens.index("s32") + 1 : tokens.index("s32") + 3]
        n_a, n_b, n_c = {"m16n8k32": (4, 2, 4), "m8n8k16": (1, 1, 2)}[shape]
        registers = [self._register(argument) for argument in call.args[: 2 * n_c + n_a + n_b]]
        rows, depth = (16, 32) if shape == "m16n8k32" else (8, 16)
        kinds = {"u8": np.uint8, "s8": np.int8}
        lane = np.arange(WARP)
        group, member = lane // 4, lane % 4

        def run(grid: Grid, mask: Mask) -> None:
            self._check(bool(mask.all()), "mma in a divergent warp")

            def words(chosen: list[tuple[int, Evaluate]]) -> np.ndarray:
                """uint32[registers, warps, lanes]"""
                loaded = [self._load(grid, mask, grid.values[slot], at(grid, mask)) for slot, at in chosen]
                return np.stack(loaded).reshape(len(chosen), -1, WARP)

            d, a, b, c = (
                registers[:n_c],
                words(registers[n_c : n_c + n_a]),
                words(registers[n_c + n_a : n_c + n_a + n_b]),
                words(registers[n_c + n_a + n_b :]),
            )
            warps = a.shape[1]
            left, right = np.zeros((warps, rows, depth), np.float32), np.zeros((warps, depth, 8), np.float32)
            for i in range(4):  # bytes of a register
                for r in range(n_a):
                    row, column = group + 8 * (r % 2 if n_a == 4 else 0), 4 * member + i + 16 * (r // 2)
                    left[:, row, column] = (a[r] >> np.uint32(8 * i)).astype(np.uint8).view(kinds[a_type])
                for r in range(n_b):
                    right[:, 4 * member + i + 16 * r, group] = (
                        (b[r] >> np.uint32(8 * i)).astype(np.uint8).view(kinds[b_type])
                    )
            product = (left @ right).astype(np.int32).view(np.uint32)  # exact: below 2^24
            for r in range(n_c):
                value = c[r] + product[:, group + 8 * (r // 2), 2 * member + r % 2]
                slot, at = d[r]
                self._store(grid, mask, grid.values[slot], at(grid, mask), value.reshape(-1, 1))

        return run

    def _register(self, load: ir.TensorLoad) -> tuple[int, Evaluate]:
        return self.slot(load.source), self._index(load.source, load.indices)

    def _place(self, address: ir.Call) -> tuple[int, Evaluate]:
        """Buffer and element of an address_of."""
        assert address.op.name == "tirx.address_of", address
        return self._register(address.args[0])

    # -- expressions --------------------------------------------------------------------------------------------------

    def expression(self, node: ir.Expr) -> Evaluate:
        kind = type(node).__name__
        if kind in _BINARY:
            combine, left, right = _BINARY[kind], self.expression(node.a), self.expression(node.b)
            return lambda grid, mask: combine(left(grid, mask), right(grid, mask))
        return getattr(self, f"_{kind.lower()}")(node)

    def _intimm(self, node: tirx.IntImm) -> Evaluate:
        value = _scalar(int(node), "bool" if str(node.ty.dtype) == "bool" else node.ty.dtype)
        return lambda grid, mask: value

    def _var(self, node: ir.Var) -> Evaluate:
        slot = self.slot(node)
        return lambda grid, mask: grid.values[slot]

    def _not(self, node: tirx.Not) -> Evaluate:
        value = self.expression(node.a)
        return lambda grid, mask: ~value(grid, mask)

    def _cast(self, node: tirx.Cast) -> Evaluate:
        value, dtype = self.expression(node.value), str(node.ty.dtype).split("x")[0]
        return lambda grid, mask: value(grid, mask).astype(dtype)

    def _select(self, node: tirx.Select) -> Evaluate:
        condition, yes, no = (self.expression(part) for part in (node.condition, node.true_value, node.false_value))
        return lambda grid, mask: np.where(condition(grid, mask), yes(grid, mask), no(grid, mask))

    def _ramp(self, node: tirx.Ramp) -> Evaluate:
        base, steps = self.expression(node.base), np.arange(int(node.lanes)) * int(node.stride)
        return lambda grid, mask: base(grid, mask) + steps

    def _broadcast(self, node: tirx.Broadcast) -> Evaluate:
        value, lanes = self.expression(node.value), int(node.lanes)
        return lambda grid, mask: np.repeat(value(grid, mask), lanes, 1)

    def _tensorload(self, node: ir.TensorLoad) -> Evaluate:
        slot, at = self._register(node)
        return lambda grid, mask: self._load(grid, mask, grid.values[slot], at(grid, mask))

    def _call(self, node: ir.Call) -> Evaluate:
        if node.op.name in _OPERATORS:
            combine, left, right = _OPERATORS[node.op.name], *(self.expression(argument) for argument in node.args)
            return lambda grid, mask: combine(left(grid, mask), right(grid, mask))
        slot, at = self._place(node)
        size = np.dtype(str(node.args[0].source.dtype)).itemsize

        def address(grid: Grid, mask: Mask) -> Pointer:
            base = grid.values[slot]
            return Pointer(base.memory, base.offset + int(at(grid, mask)[0, 0]) * size)

        return address

    def _index(self, buffer: ir.Var, indices: list[ir.Expr]) -> Evaluate:
        """Element number of an index, row by row."""
        parts = [self.expression(index) for index in indices]
        extents = [self.expression(extent) for extent in list(buffer.shape)[1:]]

        def evaluate(grid: Grid, mask: Mask) -> np.ndarray:
            total = parts[0](grid, mask).astype(np.int64)
            for extent, part in zip(extents, parts[1:], strict=True):
                total = total * extent(grid, mask) + part(grid, mask)
            return total

        return evaluate

    # -- memory -------------------------------------------------------------------------------------------------------

    def _load(self, grid: Grid, mask: Mask, array: Array, index: np.ndarray) -> np.ndarray:
        index = self._checked(grid, mask, array, index)
        value = array.data[array.copy[:, None], index]
        if array.writer is not None:
            lanes = np.nonzero(mask)[0]
            where = array.copy[lanes, None], index[lanes]
            thread = np.broadcast_to((lanes % grid.threads)[:, None], where[1].shape)
            written = (array.written[where] == grid.phase) & (array.writer[where] != thread)
            self._check(not written.any(), "a read of shared memory that another thread has just written")
            several = (array.read[where] == grid.phase) & (array.reader[where] != thread)
            array.reader[where] = np.where(several, -2, thread)
            # Of lanes that read one place at once all but the last are lost: mark those as several.
            array.reader[where] = np.where(array.reader[where] == thread, array.reader[where], -2)
            array.read[where] = grid.phase
        return value

    def _store(self, grid: Grid, mask: Mask, array: Array, index: np.ndarray, value: np.ndarray) -> None:
        index = self._checked(grid, mask, array, index)
        lanes = np.nonzero(mask)[0]
        where = array.copy[lanes, None], index[lanes]
        value = np.broadcast_to(value, index.shape)[lanes]
        self._check(value.dtype == array.data.dtype, f"{value.dtype} stored as {array.data.dtype}")
        array.data[where] = value
        if array.writer is not None:
            thread = np.broadcast_to((lanes % grid.threads)[:, None], where[1].shape)
            for who, when in ((array.writer, array.written), (array.reader, array.read)):
                met = (when[where] == grid.phase) & (who[where] != thread)
                self._check(not met.any(), "a write to shared memory that another thread uses before the next barrier")
            array.writer[where] = thread
            self._check(bool((array.writer[where] == thread).all()), "two threads write one place of shared memory")
            array.written[where] = grid.phase

    def _checked(self, grid: Grid, mask: Mask, array: Array | Pointer, index: np.ndarray) -> np.ndarray:
        """The index of every lane, int[lanes, vector lanes], 0 where a lane takes no part."""
        index = np.broadcast_to(index, (grid.lanes, index.shape[1])) + array.offset
        index = np.where(mask[:, None], index, 0)
        inside = (index >= 0) & (index < array.data.shape[1])
        self._check(
            bool(inside.all()), f"index {index.min()} .. {index.max()} outside of {array.data.shape[1]} elements"
        )
        width = index.shape[1]
        self._check(width == 1 or bool((index[:, 0] % width == 0).all()), f"a vector of {width} is not aligned")
        return index

    def _check(self, condition: bool, message: str) -> None:
        if not condition:
            raise SimtError(f"{self.name}: {message}")
