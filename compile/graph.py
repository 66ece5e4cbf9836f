"""IntegerGraph: the meaning of a quantized network, in integers only.

A graph is a tuple of nodes (``intcert.compile.nodes``). A *stored* tensor is int8 or uint8; the graph's last node holds
the logits. No float is needed to execute a graph: every scale has become an integer multiplier and a shift, and
``intcert.compile.reference`` executes them. Everything is validated on construction, so a graph that exists is one that
cannot overflow an accumulator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from math import prod

import numpy as np

from intcert.compile.infer import TensorInfo, infer
from intcert.compile.nodes import (
    NODE_KINDS,
    Clamp,
    LogitScale,
    Node,
    RequantQ15,
    RequantQ31,
    operands,
    require,
)
from intcert.runtime import packing
from intcert.runtime.errors import ModelError

_KINDS: dict[str, type] = {
    **NODE_KINDS,
    **{part.__name__: part for part in (RequantQ15, RequantQ31, LogitScale, Clamp)},
}


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """A validated integer network.

    input_shape: (H, W, C) of the uint8 image; nodes: in execution order, the last one gives the logits;
    names: one label a node, for messages and per-layer views (no part of the meaning, nor of the digest);
    scheme: "q15" or "q31". Raises ModelError where a shape, dtype, range or accumulator bound does not hold.
    """

    input_shape: tuple[int, int, int]
    scheme: str
    nodes: tuple[Node, ...]
    names: tuple[str, ...]
    info: tuple[TensorInfo, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.scheme in ("q15", "q31"), f"requantization scheme {self.scheme!r} is neither q15 nor q31")
        require(
            len(self.input_shape) == 3 and all(isinstance(n, int) and n > 0 for n in self.input_shape),
            f"input shape {self.input_shape} is not (height, width, channels)",
        )
        require(
            len(self.nodes) > 0 and len(self.nodes) == len(self.names),
            "a graph needs nodes, and a name for each",
        )
        known: list[TensorInfo] = []
        for position, (node, name) in enumerate(zip(self.nodes, self.names, strict=True)):
            try:
                require(
                    all(0 <= i < position for i in operands(node)),
                    f"operands {operands(node)} are not earlier nodes",
                )
                known.append(infer(node, [known[i] for i in operands(node)], self.input_shape, self.scheme))
            except ModelError as error:
                raise ModelError(f"{name} ({type(node).__name__}): {error}") from None
        object.__setattr__(self, "info", tuple(known))
        require(
            len(known[-1].shape) == 1,
            f"the last node {self.names[-1]} gives {known[-1].shape}, not a vector of logits",
        )

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.info[-1].shape[0]

    @property
    def dimension(self) -> int:
        """Number d of noise coordinates, H * W * C."""
        return prod(self.input_shape)

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the meaning: canonical JSON of the nodes, then every array in order."""
        return packing.digest(*self._encoded())

    def _encoded(self) -> tuple[dict[str, object], list[np.ndarray]]:
        """The meaning as a JSON header and the arrays it refers to."""
        arrays: list[np.ndarray] = []
        nodes = [_encode(node, arrays) for node in self.nodes]
        return {"input_shape": list(self.input_shape), "scheme": self.scheme, "nodes": nodes}, arrays

    def to_bytes(self) -> bytes:
        """The graph, names included, in the layout of ``intcert.runtime.packing``. No pickle."""
        header, arrays = self._encoded()
        return packing.pack(header | {"names": list(self.names)}, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> IntegerGraph:
        """Inverse of to_bytes. Raises ModelError for anything else."""
        try:
            header, arrays = packing.unpack(data)
            remaining = iter(arrays)
            nodes = tuple([_decode(entry, remaining) for entry in header["nodes"]])
            return cls(tuple(header["input_shape"]), header["scheme"], nodes, tuple(header["names"]))
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise ModelError(f"not an integer graph, or a damaged one ({error}); compile the model again") from None


def _encode(value: object, arrays: list[np.ndarray]) -> object:
    """JSON form of a node; an array goes to the list and leaves a mark."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return "array"
    if is_dataclass(value):
        return {
            "type": type(value).__name__,
            **{f.name: _encode(getattr(value, f.name), arrays) for f in fields(value)},
        }
    return list(value) if isinstance(value, tuple) else value


def _decode(value: object, arrays: Iterator[np.ndarray]) -> object:
    if value == "array":
        return next(arrays)
    if isinstance(value, dict):
        kind = _KINDS[value["type"]]
        return kind(**{f.name: _decode(value[f.name], arrays) for f in fields(kind)})
    return tuple(value) if isinstance(value, list) else value
