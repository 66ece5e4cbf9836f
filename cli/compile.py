"""``intcert compile``: a quantized model becomes an artifact, or a program that needs no Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intcert.cli import options
from intcert.cli.failure import Failure

if TYPE_CHECKING:
    from intcert.compile.graph import IntegerGraph
    from intcert.runtime.artifact import Manifest
    from intcert.runtime.certificate import CertificateTable

DUMPS = ("relax", "tir", "asm")
ARTIFACT, PROGRAM, SOURCES = "artifact", "c-harness", "c-sources"
SUFFIXES = {ARTIFACT: ".intcert", PROGRAM: "", SOURCES: "-c"}


def _split_dumps(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    kinds = tuple(filter(None, (kind.strip() for kind in (value or "").split(","))))
    unknown = [kind for kind in kinds if kind not in DUMPS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(DUMPS)}", context, parameter)
    return kinds


@click.command("compile")
@click.argument("model")
@click.option(
    "--target",
    default="host",
    show_default=True,
    help="What to compile for; `intcert targets` lists all, host is here.",
)
@click.option(
    "--sigma",
    metavar="S",
    help="Noise level on the [0, 1] scale, an exact decimal like 0.25; by default the one that the model carries.",
)
@click.option(
    "--scheme",
    type=click.Choice(["auto", "q15", "q31"]),
    default="auto",
    show_default=True,
    help="Requantization: 16-bit, 64-bit, or 16-bit where its bounds hold.",
)
@click.option("--n", type=click.IntRange(min=1), help="Embed the certificate table for this many samples.")
@click.option("--alpha", metavar="P", help="Error probability of the embedded table.  [default: 0.001]")
@click.option("--radius", metavar="R", help="Embed the sequential rule's table for this radius on the [0, 1] scale.")
@click.option(
    "--emit",
    type=click.Choice([ARTIFACT, PROGRAM, SOURCES]),
    default=ARTIFACT,
    show_default=True,
    help="An artifact; a static program of C for boards without Python; or the folder of that program's sources.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Artifact to write.  [default: MODEL's name .intcert, here]"
)
@click.option(
    "--db",
    "database",
    metavar="FILE",
    default="shipped",
    show_default=True,
    help="Tuning database (intcert tune), the one that comes with intcert for this target, or none.",
)
@click.option("--dump", metavar="KINDS", callback=_split_dumps, help="Also write OUTPUT.KIND.txt: relax,tir,asm.")
@click.option("--integer-only", is_flag=True, help="Write nothing unless `intcert audit` finds the code integer-only.")
@click.option("--dry-run", is_flag=True, help="Import only, and list everything that is not supported.")
def command(
    model: str,
    target: str,
    sigma: str | None,
    scheme: str,
    n: int | None,
    alpha: str | None,
    radius: str | None,
    emit: str,
    output: Path | None,
    database: str,
    dump: tuple[str, ...],
    integer_only: bool,
    dry_run: bool,
) -> None:
    """Compile a quantized model for a target.

    MODEL is a quantized program (.pt2, saved by torch.export.save), an integer graph (.graph), or the word demo:
    the ResNet-20 that comes with intcert.
    """
    path = options.model_path(model)
    if not options.is_model(path):
        raise Failure(f"{model} is not a model; give a .pt2 or .graph file, or the word demo")
    if dry_run:
        _dry_run(path, scheme)
        return
    output = output or Path(f"{model if model == options.DEMO else path.stem}{SUFFIXES[emit]}")
    if emit == SOURCES and output.exists():
        raise Failure(f"{output} exists; give another --output for the folder of sources")
    options.check_writable(output)
    if emit != ARTIFACT:
        if dump:
            raise Failure(f"--dump belongs to an artifact; leave it out, or leave --emit {emit} out")
        build = {"target": target, "sigma": sigma, "scheme": scheme, "n": n, "alpha": alpha, "radius": radius}
        _emit_c(path, output, emit, database=database, integer_only=integer_only, **build)
        return

    from intcert.cli.output import audit_line, both_scales, byte_size, console, facts
    from intcert.compile.build import compile_artifact

    with console(stderr=True).status(f"compiling {model}"):
        manifest = compile_artifact(
            path,
            output,
            target=target,
            sigma=sigma,
            scheme=scheme,
            n=n,
            alpha=alpha,
            radius=radius,
            dump=dump,
            database=database,
            integer_only=integer_only,
        )
    click.echo(
        facts(
            [
                ("artifact", f"{output} ({byte_size(output.stat().st_size)})"),
                ("target", manifest.target),
                ("arithmetic", f"{manifest.scheme}, {len(manifest.layers)} kernels, {_at_once(manifest)}"),
                ("input", f"{' x '.join(map(str, manifest.input_shape))}, {manifest.classes} classes"),
                ("sigma", both_scales(manifest.sigma)),
                ("tables", ", ".join(manifest.certificates) or "none embedded; certify makes its own"),
                ("audit", audit_line(manifest.audit)),
                ("graph", manifest.graph_hash),
                ("noise", manifest.noise_hash),
                *((f"dump {kind}", f"{output}.{kind}.txt") for kind in dump),
            ]
        )
    )


def _emit_c(path: Path, output: Path, emit: str, **build: Any) -> None:
    """Write the program or its sources, and print what they are. build: further arguments of ``build_harness``."""
    from intcert.cli.output import audit_line, both_scales, byte_size, console, facts
    from intcert.compile.c_harness import build_harness

    with console(stderr=True).status(f"compiling {path.stem}"):
        harness = build_harness(path, output, sources=emit == SOURCES, **build)
    graph, table = harness.sources.model.graph, harness.sources.table
    made = f"{output} (run make there)" if emit == SOURCES else f"{output} ({byte_size(output.stat().st_size)}, static)"
    click.echo(
        facts(
            [
                ("sources" if emit == SOURCES else "program", made),
                ("target", harness.sources.target.name),
                ("memory", f"{byte_size(harness.arena_bytes)} for {harness.chunk} samples at once; no heap"),
                ("input", f"{' x '.join(map(str, graph.input_shape))}, {graph.classes} classes"),
                ("sigma", both_scales(harness.sources.law.sigma)),
                ("table", _table_facts(table) if table else "none; the program counts, give --n to certify with it"),
                ("audit", audit_line(harness.audit)),
                ("graph", graph.digest),
                ("noise", harness.sources.law.digest),
            ]
        )
    )


def _table_facts(table: CertificateTable) -> str:
    parameters = table.parameters
    return f"{parameters.rule}, {parameters.n0}+{parameters.n:,} samples, alpha {parameters.alpha}"


def _at_once(manifest: Manifest) -> str:
    return (
        "the GPU's memory decides how many samples at once" if manifest.is_gpu else f"{manifest.chunk} samples at once"
    )


def _dry_run(path: Path, scheme: str) -> None:
    """Print what the import makes of a model; all of its problems where there are any."""
    from intcert.cli.graph_table import graph_table
    from intcert.cli.output import console
    from intcert.compile.build import load_model

    if path.suffix != ".graph":
        from intcert.compile.frontend import list_problems

        problems = list_problems(path, scheme=scheme)
        for problem in problems:
            click.echo(problem)
        if problems:
            raise Failure(
                f"{path} cannot be compiled: {len(problems)} problem{'s' * (len(problems) > 1)}, listed above"
            )
    graph: IntegerGraph = load_model(path, scheme).graph
    console().print(graph_table(graph))
    click.echo(f"{path} can be compiled: {len(graph.nodes)} nodes, scheme {graph.scheme}")
