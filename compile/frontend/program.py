"""Opening a torch.export program, from a ``.pt2`` file or from memory: its constants, its one input and output."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from intcert.runtime.errors import ModelError

#: The extra file of a ``.pt2`` in which training leaves what the weights do not say (sigma, class names).
METADATA_FILE = "intcert.json"


@dataclass(frozen=True)
class Program:
    """A program ready for import.

    graph: its torch.fx graph; constants: tensor of every placeholder that is a parameter, buffer or lifted constant;
    input: the image placeholder; output: what the program returns; image_shape: (H, W, C) of the input.
    """

    graph: torch.fx.Graph
    constants: dict[torch.fx.Node, torch.Tensor]
    input: torch.fx.Node
    output: torch.fx.Node
    image_shape: tuple[int, int, int]


def open_program(program: ExportedProgram | str | os.PathLike[str]) -> Program:
    """Load and check a program's outside: one float image batch [N, C, H, W] in, one tensor out. Raises ModelError."""
    exported = program if isinstance(program, ExportedProgram) else _load(Path(program))
    signature = exported.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise ModelError(
            f"the program has {len(signature.user_inputs)} inputs and {len(signature.user_outputs)} outputs; "
            "export a module that takes one image batch and returns one tensor of logits"
        )
    by_name = {node.name: node for node in exported.graph.nodes}
    source, result = by_name.get(signature.user_inputs[0]), by_name.get(signature.user_outputs[0])
    if source is None or result is None or not isinstance(source.meta.get("val"), torch.Tensor):
        raise ModelError("the program's input or output is not a tensor; export a module from images to logits")
    constants = {}
    for name, target in {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }.items():
        stored = exported.state_dict if target in exported.state_dict else exported.constants
        constants[by_name[name]] = stored[target].detach()
    return Program(exported.graph, constants, source, result, _image_shape(source))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What training wrote beside the weights of a ``.pt2`` (its extra file ``intcert.json``); empty if there is none.

    Raises ModelError for a file that is no ``.pt2``, or whose metadata is damaged.
    """
    path = Path(path)
    _require_archive(path)
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(f"extra/{METADATA_FILE}")]
        if not members:
            return {}
        try:
            metadata = json.loads(archive.read(members[0]))
        except (ValueError, zipfile.BadZipFile) as error:
            raise ModelError(f"{str(path)!r} holds a damaged {METADATA_FILE} ({error}); save the model again") from None
    if not isinstance(metadata, dict):
        raise ModelError(f"{METADATA_FILE} of {str(path)!r} is not a JSON object; save the model again")
    return metadata


def _require_archive(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{str(path)!r} is not a file; give a program saved by torch.export.save")
    if not os.access(path, os.R_OK):
        raise ModelError(f"{str(path)!r} is not readable; check its permissions")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{str(path)!r} is not a .pt2 file; save the program with torch.export.save")


def _load(path: Path) -> ExportedProgram:
    _require_archive(path)
    try:
        return torch.export.load(path)
    except Exception as error:  # torch.export raises whatever its readers of a foreign archive run into
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{str(path)!r} is not a program that this PyTorch ({torch.__version__}) can load: {first_line}"
        ) from error


def _image_shape(source: torch.fx.Node) -> tuple[int, int, int]:
    value = source.meta["val"]
    extents = tuple(value.shape[1:])
    if value.dim() != 4 or not all(isinstance(n, int) for n in extents) or not value.dtype.is_floating_point:
        raise ModelError(
            f"input {source.name} is {str(value.dtype).removeprefix('torch.')} {list(value.shape)}; export the model "
            "for float images [N, C, H, W] in [0, 1] with fixed C, H and W"
        )
    channels, height, width = extents
    return height, width, channels
