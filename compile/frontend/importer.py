"""The importer: one pass over a program's graph that turns dequantize-compute-quantize into integer nodes."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from intcert.compile.frontend import arithmetic, movement, pooling  # noqa: F401 - they fill OPERATORS
from intcert.compile.frontend.builder import GraphBuilder
from intcert.compile.frontend.calls import OPERATORS, Call
from intcert.compile.frontend.program import Program, open_program
from intcert.compile.frontend.values import Codes, Pixels, Value, Weight
from intcert.compile.graph import IntegerGraph
from intcert.runtime.errors import ModelError


def import_program(program: ExportedProgram | str | os.PathLike[str], scheme: str = "auto") -> IntegerGraph:
    """Import a quantized classifier.

    program: what torch.export gives for a PT2E-converted model, or the path of its ``.pt2`` file; it takes float images
    [N, C, H, W] in [0, 1]. scheme: "q15", "q31", or "auto" for q15 where its bounds hold.
    Raises ModelError, one line naming the node and what to do, where the program has no integer form.
    """
    graph, problems = _import(open_program(program), scheme)
    if graph is None:
        more = f" (and {len(problems) - 1} more: compile --dry-run lists them)" if len(problems) > 1 else ""
        raise ModelError(problems[0] + more)
    return graph


def list_problems(program: ExportedProgram | str | os.PathLike[str], scheme: str = "auto") -> list[str]:
    """Everything that keeps a program from being imported, one line each; empty for a program that can be.

    Problems that only follow from an earlier one are left out. Raises ModelError where the program cannot be opened.
    """
    return _import(open_program(program), scheme)[1]


def _import(program: Program, scheme: str) -> tuple[IntegerGraph | None, list[str]]:
    if scheme not in ("auto", "q15", "q31"):
        raise ModelError(f"unknown requantization scheme {scheme!r}; choose auto, q15 or q31")
    for candidate in ("q15", "q31") if scheme == "auto" else (scheme,):
        graph, problems = _Interpreter(program, candidate).run()
        if graph is not None:
            break
    return graph, problems


class _Unknown:
    """The result of a node that could not be imported; whatever reads it is skipped."""


class _Interpreter:
    """Abstract interpretation of one program for one scheme, collecting problems instead of stopping at the first."""

    def __init__(self, program: Program, scheme: str) -> None:
        self._program = program
        self._graph = GraphBuilder(scheme, program.image_shape)
        self._known: dict[Node, Any] = dict(program.constants)
        channels = program.image_shape[2]
        self._known[program.input] = Value(
            program.input.name, Pixels((Fraction(1, 255),) * channels, (Fraction(0),) * channels)
        )
        self.problems: list[str] = []

    def run(self) -> tuple[IntegerGraph | None, list[str]]:
        calls = [node for node in self._program.graph.nodes if node.op == "call_function"]
        if not any("quantize_per" in str(node.target) for node in calls):
            return None, ["the program is a float model, without quantize nodes; quantize it with PT2E first"]
        for node in calls:
            if isinstance(node.meta.get("val"), torch.Tensor | tuple | list) and node.users:
                self._visit(node)
        graph = None if self.problems else self._attempt(self._program.output, self._finish)
        return (None, self.problems) if self.problems else (graph, [])

    def _finish(self, node: Node) -> IntegerGraph:
        result = self._known[node]
        if isinstance(result, Codes):
            return self._graph.finish(result.index)
        if not isinstance(result, Value):
            raise ModelError("the output does not depend on the input; export the model that classifies images")
        return self._graph.finish(self._graph.logits(result))

    def _visit(self, node: Node) -> None:
        if all(isinstance(self._known.get(operand), torch.Tensor) for operand in node.all_input_nodes):
            known = OPERATORS.get(node.target) if "dequantize" in str(node.target) else None
            result = self._attempt(node, self._apply if known else self._fold)
        elif node.target not in OPERATORS:
            self.problems.append(f"{_label(node)}: {_advice(node)}")
            result = _Unknown()
        elif any(isinstance(self._known.get(operand), _Unknown) for operand in node.all_input_nodes):
            result = _Unknown()
        else:
            result = self._attempt(node, self._apply)
        self._known[node] = result
        if _overwrites(node):
            self._known[node.args[0]] = result

    def _attempt(self, node: Node, action: Any) -> Any:
        try:
            return action(node)
        except ModelError as error:
            self.problems.append(f"{_label(node)}: {error}")
            return _Unknown()

    def _fold(self, node: Node) -> torch.Tensor:
        """The value of a node that depends on constants alone."""
        arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), lambda operand: self._known[operand].clone())
        with torch.no_grad():
            return node.target(*arguments, **keywords)

    def _apply(self, node: Node) -> Value | Weight | Codes | torch.Tensor:
        arguments = torch.fx.map_arg(_bound_arguments(node), self._known.get)
        # Constants may come first (as in 1 - x): the shape that counts is the one of what depends on the input.
        fed = [operand for operand in node.all_input_nodes if isinstance(self._known.get(operand), Value | Codes)]
        before, after = (fed or [node])[0].meta["val"].shape, node.meta["val"].shape
        if len({_extents(operand.meta["val"].shape) for operand in fed}) > 1 and "cat" not in str(node.target):
            raise ModelError("broadcasts one activation over another; add tensors of one shape")
        keeps_batch = len(after) > 0 and len(before) > 0 and bool(before[0] == after[0])
        return OPERATORS[node.target](
            Call(node.name, arguments, _extents(before), _extents(after), keeps_batch, self._graph)
        )


def _bound_arguments(node: Node) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, defaults included."""
    schema = node.target._schema.arguments
    bound = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    bound.update(zip((argument.name for argument in schema), node.args, strict=False))
    return bound | dict(node.kwargs)


def _extents(shape: torch.Size) -> tuple[int, ...]:
    return tuple(int(n) for n in shape[1:])


def _overwrites(node: Node) -> bool:
    """Whether an operator changes its first argument in place, so that later readers of it see the result."""
    first = node.target._schema.arguments[0] if hasattr(node.target, "_schema") else None
    written = first is not None and first.alias_info is not None and first.alias_info.is_write
    return written and isinstance(node.args[0], Node)


def _label(node: Node) -> str:
    """``conv2d_3 (aten.conv2d)``; a quantize node speaks for what it quantizes."""
    if "quantize_per_tensor" in str(node.target) and isinstance(node.args[0], Node):
        node = node.args[0]
    return f"{node.name} ({str(node.target).removesuffix('.default')})" if node.op == "call_function" else node.name


def _advice(node: Node) -> str:
    target = str(node.target)
    if "choose_qparams" in target:
        return "dynamic quantization; quantize activations statically"
    if "softmax" in target:
        return "a softmax has no integer form; export the model without it, logits suffice"
    return "unsupported operator; build the model from convolutions, linears, ReLUs, additions, joins and pooling"
