"""``intcert inspect``: what is in a model or an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from intcert.cli import options

if TYPE_CHECKING:
    from rich.table import Table


@click.command("inspect")
@click.argument("file")
def command(file: str) -> None:
    """Show what a model or an artifact holds.

    FILE is an artifact, a model (.pt2 or .graph), or demo, the model that comes with intcert. Runs none of an
    artifact's code.
    """
    from intcert.cli.output import console

    path = options.model_path(file)
    description, graph = _model(path) if options.is_model(path) else _artifact(path)
    click.echo(f"{description}\n")
    console().print(graph)


def _model(path: Path) -> tuple[str, Table]:
    from intcert.cli.graph_table import graph_table
    from intcert.cli.output import both_scales, byte_size, facts
    from intcert.compile.build import load_model

    model = load_model(path)
    graph = model.graph
    return (
        facts(
            [
                ("model", f"{path} ({byte_size(path.stat().st_size)})"),
                ("input", " x ".join(map(str, graph.input_shape))),
                ("classes", _classes(graph.classes, model.class_names)),
                ("arithmetic", graph.scheme),
                ("sigma", both_scales(model.sigma) if model.sigma else "not in the model; give it to compile"),
                ("file hash", model.digest),
                ("graph hash", graph.digest),
            ]
        ),
        graph_table(graph),
    )


def _artifact(path: Path) -> tuple[str, Table]:
    from intcert.cli.graph_table import graph_table
    from intcert.cli.output import audit_line, both_scales, byte_size, facts
    from intcert.compile.graph import IntegerGraph
    from intcert.runtime.artifact import GRAPH, read_artifact

    artifact = read_artifact(path)
    manifest = artifact.manifest
    return (
        facts(
            [
                ("artifact", f"{path} ({byte_size(path.stat().st_size)}), format {manifest.format_version}"),
                ("target", manifest.target),
                ("needs", f"TVM {manifest.tvm_version}; {' '.join(manifest.target_facts.get('cpu_flags', ()))}"),
                ("input", " x ".join(map(str, manifest.input_shape))),
                ("classes", _classes(manifest.classes, manifest.class_names)),
                ("arithmetic", manifest.scheme),
                ("sigma", both_scales(manifest.sigma)),
                ("eta", ", ".join(f"{name} {value}" for name, value in manifest.eta.items())),
                ("chunk", f"{manifest.chunk} samples, {byte_size(manifest.arena_bytes)} of working memory"),
                ("functions", ", ".join(manifest.entry_points)),
                ("tables", ", ".join(manifest.certificates) or "none"),
                ("audit", audit_line(manifest.audit)),
                ("model hash", manifest.model_hash),
                ("graph hash", manifest.graph_hash),
                ("noise hash", manifest.noise_hash),
                *(("member", f"{name} ({byte_size(len(data))})") for name, data in sorted(artifact.members.items())),
            ]
        ),
        graph_table(IntegerGraph.from_bytes(artifact.members[GRAPH]), [layer["kernel"] for layer in manifest.layers]),
    )


def _classes(count: int, names: tuple[str, ...]) -> str:
    return f"{count}: {', '.join(names)}" if names else str(count)
