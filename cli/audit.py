"""``intcert audit``: does an artifact's machine code compute with integers only?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intcert.cli.failure import ANSWER_IS_NO, Failure

if TYPE_CHECKING:
    from intcert.compile.audit import Audit, CodeAudit

_SHOWN = 10  # findings on the terminal; --json has all
_ZIP = b"PK"


@click.command("audit")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON: every function, mnemonic and finding.")
def command(file: Path, as_json: bool) -> None:
    """Prove from the machine code that no function computes with floats.

    FILE is an artifact, or machine code by itself: a shared library, a cubin or a fat binary. Every instruction is
    read and must be on a list of integer, move and control instructions; none of the code is run. Exit code 1 where
    anything else is in it, or cannot be decoded.
    """
    from intcert.compile.audit import audit_code
    from intcert.runtime.artifact import read_artifact

    content = file.read_bytes()
    audit = audit_code(read_artifact(file).library if content.startswith(_ZIP) else content, str(file))
    if as_json:
        click.echo(json.dumps(audit.to_json(), indent=1))
    else:
        _show(audit)
    if not audit.clean:
        count = len(audit.findings)
        raise Failure(
            f"{file} is not proven integer-only: {count} finding{'s' * (count > 1)}, the first {audit.findings[0]}",
            ANSWER_IS_NO,
        )
    if not as_json:
        total = sum(code.instructions for code in audit.codes)
        click.echo(f"integer-only: none of {total:,} instructions computes with floats, and no call leads to one")


def _show(audit: Audit) -> None:
    from intcert.cli.output import console, facts

    for code in audit.codes:
        pairs = [("code for", code.architecture), ("read by", code.disassembler)]
        pairs += [(name, ", ".join(value)) for name, value in (("calls", code.imports), ("VM calls", code.vm_calls))]
        click.echo(f"{facts((name, value) for name, value in pairs if value)}\n")
        console().print(_table(code))
        click.echo()
    for finding in audit.findings[:_SHOWN]:
        click.echo(str(finding))
    if len(audit.findings) > _SHOWN:
        click.echo(f"and {len(audit.findings) - _SHOWN} more; --json lists them")


def _table(code: CodeAudit) -> object:
    """A line a function, a column a class; the classes with a float type in their name share one."""
    from intcert.cli.output import table
    from intcert.compile.audit import FLOAT_TYPED, PLAIN

    columns = [("instructions", None), *((kind, {kind}) for kind in PLAIN), ("float-typed", set(FLOAT_TYPED))]
    rows = []
    for function in code.functions:
        counts = [
            function.instructions if kinds is None else sum(function.kinds.get(kind, 0) for kind in kinds)
            for _, kinds in columns
        ]
        rows.append((function.name, function.role, "" if function.reachable else "never called", *counts))
    rows.append(("total", "", "", *(sum(column) for column in list(zip(*rows, strict=True))[3:])))
    shown = [(*row[:3], *(f"{count:,}" if count else "" for count in row[3:])) for row in rows]
    names = ("function", "role", "", *(name for name, _ in columns))
    return table(names, shown, right=range(3, len(names)))
