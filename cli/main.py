"""The ``intcert`` command. Each subcommand is a file of this folder and imports inside itself whatever is slow."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from intcert.cli.failure import INTERRUPTED, USER_ERROR, Failure, Interrupted

COMMANDS = (
    "train",
    "quantize",
    "compile",
    "tune",
    "audit",
    "inspect",
    "targets",
    "certify",
    "predict",
    "replay",
    "eval",
    "bench",
)

EPILOG = (
    "Exit codes: 0 ok, 1 the answer is no, 2 undecided, 3 a device was lost, 4 something to correct in the call or its "
    "files, 5 a missing optional package, 130 Ctrl-C."
)


class Intcert(click.Group):
    """The group of all commands: finds their files, and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"intcert.cli.{cmd_name}").command

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.params["debug"]:
            return super().invoke(ctx)
        # torch logs whole tracebacks of errors that end here as one line.
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            return super().invoke(ctx)
        except Exception as error:
            failure = _failure(error)
            if failure is None:
                raise
            raise failure from error
        finally:
            logging.disable(before)

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run a command line, ``sys.argv`` by default, and exit with its code."""
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            sys.exit(super().main(words, **extra | {"standalone_mode": False}) or 0)
        except Interrupted as failure:
            _stop(f"interrupted: {failure.message}", INTERRUPTED)
        except Failure as failure:
            _stop(f"error: {failure.message}", failure.exit_code)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "intcert"
            _stop(f"error: {error.format_message().rstrip('.')}; see `{command} --help`", USER_ERROR)
        except click.Abort:
            _stop("interrupted", INTERRUPTED)


def _failure(error: Exception) -> Failure | None:
    """The user's view of an error; None for a defect of intcert, whose traceback is wanted."""
    from intcert.runtime.errors import IntcertError
    from intcert.targets import UnknownTargetError

    if isinstance(error, IntcertError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, UnknownTargetError):
        return Failure(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return None


def _stop(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


@click.group(cls=Intcert, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="intcert")
@click.option("--debug", is_flag=True, hidden=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Compile quantized PyTorch classifiers to integer-only kernels and certify their robustness on the device."""
