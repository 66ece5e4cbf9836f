"""``intcert targets``: what can be compiled for, and what this machine runs."""

from __future__ import annotations

import click


@click.command("targets")
def command() -> None:
    """List the targets, and what this machine runs."""
    from intcert.cli.output import console, table
    from intcert.targets import TARGETS, UnknownTargetError, cpu_flags, host

    have = cpu_flags()
    try:
        strongest = host().name
    except UnknownTargetError:
        strongest = None
    rows = []
    for target in TARGETS:
        missing = sorted(set(target.cpu_flags) - have)
        here = f"no: lacks {' '.join(missing)}" if missing else "yes, = host" if target.name == strongest else "yes"
        rows.append((target.name, target.description, target.dot.name, here))
    console().print(table(("target", "processor", "dot product", "runs here"), rows))
