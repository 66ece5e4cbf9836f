"""Programs on disk: float networks are exported here; every ``.pt2`` is written with what its weights do not say."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from intcert.runtime.errors import ModelError
from intcert.runtime.files import write_whole

METADATA_FILE = "intcert.json"  # the extra file inside the .pt2: recipe, sigma, class names


def export_float(network: nn.Module, example: Tensor) -> ExportedProgram:
    """A float network as a program: float ``[N, C, H, W]`` in [0, 1] -> logits; example gives C, H and W."""
    batch = {0: torch.export.Dim("batch", min=1)}
    return torch.export.export(network.eval(), (example,), dynamic_shapes=(batch,))


def save_program(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write ``program`` and ``metadata`` (as the extra file ``intcert.json``) to ``path``, whole or not at all.

    Example inputs and what tells of each node's making (source lines, and memory addresses that no two runs share)
    are left out: the same weights give the same bytes.
    """
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
        node.meta.pop("from_node", None)
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={METADATA_FILE: json.dumps(metadata, indent=1)})
    write_whole(path, archive.getbuffer())


def load_program(path: Path) -> tuple[ExportedProgram, dict[str, Any]]:
    """A program and its metadata, empty where it carries none.

    Raises:
        ModelError: the file is missing, no program, or its metadata is damaged.
    """
    extra = {METADATA_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # torch.export raises whatever its readers of a foreign archive run into
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"cannot read the program {str(path)!r} ({reason}); give a .pt2 file") from error
    try:
        metadata = json.loads(extra[METADATA_FILE] or "{}")
    except ValueError as error:
        raise ModelError(f"{str(path)!r} holds a damaged {METADATA_FILE} ({error}); save the model again") from error
    return program, metadata


def is_quantized(program: ExportedProgram) -> bool:
    """Whether a program rounds anywhere to 8 bits."""
    return any("quantize_per" in str(node.target) for node in program.graph.nodes)


def image_shape(program: ExportedProgram) -> tuple[int, int, int]:
    """(H, W, C) of the images that a program takes.

    Raises:
        ModelError: it does not take one batch of images.
    """
    names = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in names]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].dim() != 4:
        raise ModelError("the program does not take one batch of images; export it for float images [N, C, H, W]")
    channels, height, width = (int(extent) for extent in values[0].shape[1:])
    return height, width, channels


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in ``path``, bare or under the key ``state_dict``.

    Raises:
        ModelError: there is none that torch can read.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = saved.get("state_dict", saved)
    except Exception as error:  # torch.load reports damage by a dozen exception types
        raise ModelError(f"cannot read a state dict from {str(path)!r}; give a file that torch.save wrote") from error
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"cannot read a state dict from {str(path)!r}; give a file that torch.save wrote")
    return state
