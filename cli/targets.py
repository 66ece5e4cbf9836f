"""``intcert targets``: what can be compiled for, who links it, and what this machine runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from intcert.targets import Target


@click.command("targets")
def command() -> None:
    """List the targets, what links for them, and what this machine runs.

    Units are given with what one instruction does: sums x products of each; for matrix units rows x columns x
    products.
    """
    from intcert.cli.output import console, table
    from intcert.targets import GPU_TARGETS, TARGETS, UnknownTargetError, cpu_flags, host

    have = cpu_flags()
    try:
        strongest = host().name
    except UnknownTargetError:
        strongest = None
    rows = []
    for target in TARGETS:
        here = "yes, = host" if target.name == strongest else "yes" if have.issuperset(target.cpu_flags) else "no"
        rows.append(
            (target.name, target.description, " ".join(target.cpu_flags), _units(target), _linker(target), here)
        )
    for gpu in GPU_TARGETS:
        unit = f"mma {gpu.mma.m}x{gpu.mma.n}x{gpu.mma.k}"
        rows.append(
            (
                gpu.name,
                gpu.description,
                "compute {}.{}".format(*gpu.capability),
                unit,
                _gpu_compiler(),
                "asked on opening",
            )
        )
    console().print(table(("target", "processor", "instruction sets", "units", "linker", "runs here"), rows))


def _units(target: Target) -> str:
    """The instructions of its convolutions, with what one of them computes."""
    dot, tile = target.dot, target.tile
    names = [f"{tile.name} {tile.rows}x{tile.columns}x{tile.depth}"] if tile else []
    return ", ".join([*names, f"{dot.name} {dot.lanes}x{dot.depth}"])


def _gpu_compiler() -> str:
    from intcert.compile.library_cuda import nvcc
    from intcert.runtime.errors import MissingDependencyError

    try:
        return Path(nvcc()).name
    except MissingDependencyError:
        return "none: install the CUDA toolkit"


def _linker(target: Target) -> str:
    from intcert.compile.linker import find_linker
    from intcert.runtime.errors import MissingDependencyError

    try:
        return find_linker(target).name
    except MissingDependencyError:
        return "none: pip install 'intcert[cross]'"
