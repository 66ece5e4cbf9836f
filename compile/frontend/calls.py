"""How operators of a torch.export program are called, and the table of those that have an integer form.

``OPERATORS`` maps an aten overload to its function. Arguments arrive bound to the names of the operator's own schema,
with its defaults, and tensors replaced by what the importer knows of them (``values``; torch.Tensor for constants).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from intcert.compile.frontend.builder import GraphBuilder
from intcert.compile.frontend.values import Codes, Value, Weight
from intcert.runtime.errors import ModelError


@dataclass(frozen=True)
class Call:
    """One operator call. shape: of the result without batch, as torch has it ((C, H, W) or (C,))."""

    name: str
    arguments: dict[str, Any]
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    keeps_batch: bool
    graph: GraphBuilder

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def value(self, argument: str) -> Value:
        """An argument that is computed from the input."""
        found = self.arguments[argument]
        if isinstance(found, Codes):
            raise ModelError("works on a quantized tensor directly; put a dequantize node in front of it")
        if not isinstance(found, Value):
            raise ModelError(f"{argument} does not come from the input; fold constants before quantizing")
        return found

    def pair(self, argument: str) -> tuple[int, int]:
        """A (vertical, horizontal) setting that may be given as one number."""
        found = self.arguments[argument]
        first, *rest = found if isinstance(found, list | tuple) else [found]
        return (int(first), int(rest[0] if rest else first))


Operator = Callable[[Call], Value | Weight | Codes | torch.Tensor]
OPERATORS: dict[Any, Operator] = {}


def operator(*targets: Any) -> Callable[[Operator], Operator]:
    """Register a function for these overloads."""

    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(targets, function))
        return function

    return register


def shown(shape: Iterable[int]) -> str:
    """A shape as messages show it, with the batch as N."""
    return f"[N, {', '.join(map(str, shape))}]"


def require_image(call: Call) -> None:
    """Raise ModelError unless the operator is applied to images."""
    if len(call.input_shape) != 3:
        raise ModelError(f"is applied to {shown(call.input_shape)}; it has an integer form for [N, C, H, W] only")
