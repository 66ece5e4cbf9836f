"""``intcert eval``: clean accuracy of a model in every form it has, and the first layer where two of them part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from intcert.cli import options
from intcert.cli.failure import ANSWER_IS_NO, Failure

if TYPE_CHECKING:
    from intcert.compile.graph import IntegerGraph
    from intcert.runtime.datasets import Dataset
    from intcert.runtime.session import LocalSession

BATCH = 50
REFERENCE = "reference (NumPy)"

Logits = Callable[[np.ndarray], np.ndarray]  # uint8[n, H, W, C] -> [n, classes]


@dataclass
class Form:
    """One way to compute the network, and its answers so far. answers: the class of every image, in order."""

    logits: Logits
    answers: list[int] = field(default_factory=list)


@click.command("eval")
@click.argument("files", metavar="FILE [FILE]", nargs=-1, required=True)
@options.data_option
@options.split_option
@click.option("--skip", type=click.IntRange(min=1), default=1, show_default=True, help="Take every SKIP-th image.")
@click.option(
    "--max", "limit", metavar="INDEX", type=click.IntRange(min=1), help="Stop before the image of this index."
)
@options.threads_option
def command(files: tuple[str, ...], data: str, split: str, skip: int, limit: int | None, threads: int | None) -> None:
    """Measure the accuracy on images without noise.

    Takes a model (.pt2, .graph or demo), an artifact, or both. Compares torch's float fake-quantization (of a
    .pt2), the integer reference, and the compiled kernels. Kernels must equal the reference bit for bit: if they do
    not, the first layer where they part is named, and the exit code is 1.
    """
    paths = [options.model_path(file) for file in files]
    models = [path for path in paths if options.is_model(path)]
    artifacts = [path for path in paths if not options.is_model(path)]
    if len(models) > 1 or len(artifacts) > 1:
        raise click.UsageError("give at most one model and at most one artifact")

    from intcert.cli.output import console, progress_bar, table
    from intcert.compile.reference import run
    from intcert.runtime import open_artifact

    with ExitStack() as stack:
        session = stack.enter_context(open_artifact(artifacts[0], threads)) if artifacts else None
        graph = _graph(models[0] if models else None, session)
        forms: dict[str, Form] = {}
        if models and models[0].suffix == ".pt2":
            forms["fake-quant (torch)"] = Form(_fake_quant(models[0], threads))
        forms[REFERENCE] = Form(lambda images: run(graph, images.astype(np.int16)))
        if session is not None:
            forms[f"artifact ({session.target})"] = Form(lambda images: session.logits(images.astype(np.int16)))
        dataset = options.open_data(data, split, graph, session.artifact.manifest.class_names if session else ())
        indices = range(0, len(dataset) if limit is None else min(limit, len(dataset)), skip)

        labels: list[int] = []
        parted: int | None = None  # position of the first image on which kernels and reference differ
        with progress_bar() as bar:
            task = bar.add_task("images", total=len(indices), note="")
            for images, batch_labels in _batches(dataset, indices):
                results = {name: form.logits(images) for name, form in forms.items()}
                for name, logits in results.items():
                    forms[name].answers += logits.argmax(-1).tolist()
                if session is not None and parted is None:
                    unequal = (results[REFERENCE] != results[f"artifact ({session.target})"]).any(-1)
                    parted = len(labels) + int(unequal.argmax()) if unequal.any() else None
                labels += batch_labels
                bar.advance(task, len(images))

        rows = [
            (name, len(labels), _share(form.answers, labels), _share(form.answers, forms[REFERENCE].answers))
            for name, form in forms.items()
        ]
        console().print(
            table(("form", "images", "clean accuracy", "same class as the reference"), rows, right=(1, 2, 3))
        )
        if session is not None:
            if parted is not None:
                index = indices[parted]
                where = first_difference(graph, session, dataset[index].image) or "none of the layers alone"
                raise Failure(
                    f"{artifacts[0]} parts from the reference on image {index}; first in {where}", ANSWER_IS_NO
                )
            click.echo(f"logits of {artifacts[0]} equal the reference bit for bit")


def _graph(model: Path | None, session: LocalSession | None) -> IntegerGraph:
    """The integer graph that everything is compared with: the model's, else the one inside the artifact."""
    from intcert.compile.build import load_model
    from intcert.compile.graph import IntegerGraph
    from intcert.runtime.artifact import GRAPH

    if session is None:
        return load_model(model).graph
    if model is None:
        return IntegerGraph.from_bytes(session.artifact.members[GRAPH])
    graph = load_model(model, session.artifact.manifest.scheme).graph
    if graph.digest != session.graph_hash:
        raise Failure(f"{session.artifact.path} was not compiled from {model}: their graphs differ; compile it again")
    return graph


def _fake_quant(path: Path, threads: int | None) -> Logits:
    """The program itself, as torch runs it: float arithmetic between quantize and dequantize."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    program = torch.export.load(path)
    images = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    extent = images.meta["val"].shape[0]
    network = program.module()

    def logits(batch: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        if not isinstance(extent, int):
            return network(pixels).detach().numpy()
        # Exported for one batch size only: fill the last batch up.
        filled = torch.cat([pixels, pixels.new_zeros(-len(pixels) % extent, *pixels.shape[1:])])
        return torch.cat([network(part) for part in filled.split(extent)]).detach().numpy()[: len(batch)]

    return logits


def _batches(dataset: Dataset, indices: range) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Images uint8[n, H, W, C] with their labels."""
    for begin in range(0, len(indices), BATCH):
        samples = [dataset[index] for index in indices[begin : begin + BATCH]]
        yield np.stack([sample.image for sample in samples]), [sample.label for sample in samples]


def first_difference(graph: IntegerGraph, session: LocalSession, image: np.ndarray) -> str | None:
    """The first layer whose result on an image, uint8[H, W, C], is not the reference's; None where all are equal."""
    from intcert.compile.reference import activations

    manifest = session.artifact.manifest
    arena = np.zeros(manifest.arena_bytes, np.uint8)
    pixels = image.astype(np.int16)
    expected = activations(graph, pixels[None])
    for position, (node, layer) in enumerate(zip(graph.nodes, manifest.layers, strict=True)):
        if type(node).__name__ == "InputQuantize":
            (offset,) = layer["operands"]
            arena[offset : offset + pixels.nbytes] = pixels.view(np.uint8).reshape(-1)
        arena = np.array(session.layers(arena, position, position + 1))
        *extents, channels = layer["shape"]
        stride, dtype = layer["stride"], np.dtype(layer["dtype"])
        size = int(np.prod(extents, dtype=int)) * stride * dtype.itemsize
        found = arena[layer["offset"] : layer["offset"] + size].view(dtype).reshape(*extents, stride)[..., :channels]
        unequal = found != expected[position][0]
        if unequal.any():
            return (
                f"layer {position}, {layer['name']} ({layer['kernel']}): {int(unequal.sum())} of {unequal.size} values"
            )
    return None


def _share(answers: list[int], truth: list[int]) -> str:
    return f"{np.mean(np.array(answers) == np.array(truth)):.4f}"
