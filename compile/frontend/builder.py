"""From abstract values to nodes: what happens when a quantize node closes a sum."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from intcert.compile.frontend.values import Joined, Move, Output, Pending, Pixels, Stored, Value
from intcert.compile.graph import IntegerGraph
from intcert.compile.infer import TensorInfo, infer
from intcert.compile.nodes import INPUT_RANGE, Add, Concat, InputQuantize, Node, operands
from intcert.compile.requantize import Accumulator, Quantization, requantize, scale_logits
from intcert.runtime.errors import ModelError


class GraphBuilder:
    """The integer graph so far. Every method raises ModelError, without a node's name, where integers cannot follow."""

    def __init__(self, scheme: str, input_shape: tuple[int, int, int]) -> None:
        self.scheme = scheme
        self.input_shape = input_shape
        self.info: list[TensorInfo] = []
        self._nodes: list[Node] = []
        self._names: list[str] = []

    def emit(self, node: Node, name: str) -> int:
        """Append a node; returns its position."""
        info = infer(node, [self.info[i] for i in operands(node)], self.input_shape, self.scheme)
        self._nodes.append(node)
        self._names.append(name)
        self.info.append(info)
        return len(self._nodes) - 1

    def finish(self, last: int) -> IntegerGraph:
        """The graph of everything that node ``last`` depends on."""
        needed: set[int] = set()
        pending = [last]
        while pending:
            index = pending.pop()
            if index not in needed:
                needed.add(index)
                pending.extend(operands(self._nodes[index]))
        position = {old: new for new, old in enumerate(sorted(needed))}
        nodes = tuple(_renumbered(self._nodes[old], position) for old in position)
        return IntegerGraph(self.input_shape, self.scheme, nodes, _unique([self._names[old] for old in position]))

    def read(self, index: int, scale: Quantization) -> Stored:
        """Node ``index`` under the scale and zero point of a code, with the range that the graph proves."""
        return Stored(index, replace(scale, range=self.info[index].range))

    def move(self, value: Value, move: Move, name: str) -> Value:
        """Data movement: at once on a stored tensor, else once the value is stored."""
        stored = value.stored
        if stored is None:
            return replace(value, name=name, moves=(*value.moves, move))
        index = self.emit(move(stored.index, stored.code), name)
        return Value(name, terms=(self.read(index, stored.code),))

    def store(self, value: Value) -> Stored:
        """The value as an operand of a convolution or pooling. Refuses whatever still needs a scale of its own."""
        if value.stored is not None:
            return value.stored
        if value.head is not None or len(value.terms) != 1:
            raise ModelError(f"reads {value.name} in float; put a quantize node between them")
        # A clamp of a stored tensor keeps its scale where the bounds are codes.
        (term,) = value.terms
        for bound in (value.low, value.high):
            if bound is not None and (bound / term.code.scale).denominator != 1:
                raise ModelError(f"reads {value.name}, a clamp between two integers; put a quantize node between them")
        index = self.quantize(value, Output(term.code, self.info[term.index].dtype))
        return self.read(index, term.code)

    def quantize(self, value: Value, output: Output) -> int:
        """The node that holds the value as ``output``."""
        index = self._close(value, output)
        for move in value.moves:
            index = self.emit(move(index, output.code), value.name)
        return index

    def _close(self, value: Value, output: Output) -> int:
        clamp = output.clamp(value.low, value.high)
        terms = [term.code for term in value.terms]
        indices = tuple(term.index for term in value.terms)
        head = value.head
        if head is None:
            if len(terms) == 1 and self._is_same(value.terms[0], output, clamp.lo, clamp.hi):
                return indices[0]
            _, requant = requantize(self.scheme, None, terms, output.code)
            return self.emit(Add(indices, requant, clamp), value.name)
        if isinstance(head, Joined):
            pieces = tuple(self.quantize(piece.clamped(value.low, value.high), output) for piece in head.pieces)
            return self.emit(Concat(pieces), value.name)
        if isinstance(head, Pixels):
            bias, requant = requantize(self.scheme, self._pixel_accumulator(head), [], output.code, "pixels")
            return self.emit(InputQuantize(bias, requant, clamp), value.name)
        bias, requant = requantize(self.scheme, head.accumulator, terms, output.code, head.source)
        return self.emit(head.build(bias, requant, clamp, indices), value.name)

    def _is_same(self, term: Stored, output: Output, lo: int, hi: int) -> bool:
        info = self.info[term.index]
        return (
            term.code.scale == output.code.scale
            and term.code.zero_point == output.code.zero_point
            and info.dtype == output.dtype
            and lo <= info.range[0]
            and info.range[1] <= hi
        )

    def _pixel_accumulator(self, pixels: Pixels) -> Accumulator:
        zeros = np.zeros(len(pixels.scale), np.int64)
        return Accumulator(pixels.scale, pixels.offset, zeros, zeros + max(map(abs, INPUT_RANGE)))

    def logits(self, value: Value) -> int:
        """The node that gives a program's float output: scaled accumulators, or the integers of a quantized output."""
        if value.head is None and len(value.terms) == 1:
            return self.store(value).index
        head = value.head
        if (
            not isinstance(head, Pending)
            or head.source != "weights"
            or value.terms
            or not replace(value, moves=()).is_open
        ):
            raise ModelError(
                "the output is neither quantized nor a convolution or linear layer; end the model with one"
            )
        bias, scale = scale_logits(head.accumulator)
        index = self.emit(head.build(bias, scale, None, ()), value.name)
        for move in value.moves:
            index = self.emit(move(index, _LOGITS), value.name)
        return index


#: Stands for the code of int32 logits, which data movement that keeps values never reads.
_LOGITS = Quantization(scale=Fraction(1), zero_point=0, range=(-(2**31), 2**31 - 1))


def _renumbered(node: Node, position: dict[int, int]) -> Node:
    changes: dict[str, int | tuple[int, ...]] = {}
    if hasattr(node, "input"):
        changes["input"] = position[node.input]
    for group in ("inputs", "terms"):
        if getattr(node, group, ()):
            changes[group] = tuple(position[i] for i in getattr(node, group))
    return replace(node, **changes)


def _unique(names: list[str]) -> tuple[str, ...]:
    """Names with a running number behind repeated ones."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return tuple(result)
