"""``intcert eval``: accuracies, and where a wrong kernel is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from intcert.compile.graph import IntegerGraph
from intcert.compile.nodes import Conv2d
from intcert.runtime import read_artifact, write_artifact


def table(stdout: str) -> dict[str, list[str]]:
    """The forms of the printed table with their cells."""
    lines = (line.rsplit(maxsplit=3) for line in stdout.splitlines() if "(" in line and "0." in line)
    return {form.strip(): cells for form, *cells in lines}


def test_eval_compares_every_form(intcert, colour_model, colour_artifact, colour_folder):
    result = intcert("eval", colour_model, colour_artifact, "--data", f"folder:{colour_folder}", "--max", 6)
    assert result.exit_code == 0, result.output
    assert len(table(result.stdout)) == 3 or "1.0000" in result.stdout
    for form in (
        "fake-quant (torch)",
        "reference (NumPy)",
        f"artifact ({read_artifact(colour_artifact).manifest.target})",
    ):
        line = next(line for line in result.stdout.splitlines() if form in line)
        assert line.split()[-3:] == ["6", "1.0000", "1.0000"]
    assert "bit for bit" in result.stdout


def test_eval_of_a_model_or_an_artifact_alone(intcert, colour_model, colour_artifact, colour_folder, tmp_path):
    data = ("--data", f"folder:{colour_folder}", "--skip", 3)
    alone = intcert("eval", colour_artifact, *data)
    assert alone.exit_code == 0, alone.output
    assert "fake-quant" not in alone.stdout
    assert "bit for bit" in alone.stdout
    model = intcert("eval", colour_model, *data)
    assert model.exit_code == 0, model.output
    assert "artifact" not in model.stdout
    graph = tmp_path / "m.graph"
    graph.write_bytes(read_artifact(colour_artifact).members["graph.bin"])
    assert "fake-quant" not in intcert("eval", graph, *data).stdout


def test_a_program_of_fixed_batch_size(intcert, colour_program, colour_folder, tmp_path):
    """Exported for four images at once; seven are evaluated."""
    import torch

    path = tmp_path / "fixed.pt2"
    torch.export.save(torch.export.export(colour_program.module(), (torch.rand(4, 3, 8, 8),)), path)
    result = intcert("eval", path, "--data", f"folder:{colour_folder}")
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if "fake-quant" in line)
    assert line.split()[-3] == "7"


def test_the_layer_with_a_wrong_kernel_is_named(intcert, colour_artifact, colour_folder, tmp_path):
    """The library of one network beside the graph of another, which differs in one weight of the convolution."""
    artifact = read_artifact(colour_artifact)
    graph = IntegerGraph.from_bytes(artifact.members["graph.bin"])
    position = next(i for i, node in enumerate(graph.nodes) if isinstance(node, Conv2d))
    weight = np.array(graph.nodes[position].weight)
    weight[0, 1, 1, :] += 40
    nodes = tuple(replace(node, weight=weight) if i == position else node for i, node in enumerate(graph.nodes))
    other = IntegerGraph(graph.input_shape, graph.scheme, nodes, graph.names)
    path = tmp_path / "wrong.intcert"
    manifest = replace(artifact.manifest, graph_hash=other.digest)
    write_artifact(path, manifest, dict(artifact.members) | {"graph.bin": other.to_bytes()})

    result = intcert("eval", path, "--data", f"folder:{colour_folder}")
    assert result.exit_code == 1
    assert "parts from the reference on image 0" in result.stderr
    assert f"layer {position}, {graph.names[position]} ({manifest.layers[position]['kernel']})" in result.stderr


def test_what_does_not_belong_together_is_refused(
    refused, intcert, colour_model, colour_artifact, colour_folder, tmp_path
):
    data = ("--data", f"folder:{colour_folder}")
    refused("eval", colour_model, colour_model, *data, saying=("at most one model",))
    refused("eval", *data, saying=("FILE",))
    refused("eval", "demo", colour_artifact, *data, saying=("graphs differ",))
