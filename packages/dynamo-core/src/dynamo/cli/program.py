"""Runs the command line once: exit codes, and how errors look. Called by the console script and ``-m dynamo.cli``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from dynamo.cli.group import root
from dynamo.errors import DynamoError

__all__ = ["main", "run"]

#: Shells' code for "ended by SIGINT".
EXIT_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the program with the process's arguments and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run ``dynamo ARGUMENTS`` and return the exit code: 0, 1 for an error, 2 for wrong usage, 130 when interrupted.

    A `DynamoError` is printed as ``Error: message`` and its hint, without a traceback unless ``--debug`` or
    ``DYN_DEBUG=1`` asks for one. A closed pipe behind us (``dynamo plugins | head -1``) ends the program quietly.
    """
    _warn_of_misspelt_variables()
    try:
        result = root.main(list(arguments), prog_name="dynamo", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except DynamoError as error:
        _print_error(error, with_traceback=_debug(arguments))
        return 1
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # click returns what `ctx.exit(code)` was given, or what the command returned.
    return result if isinstance(result, int) else 0


def _debug(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments[:1] or os.environ.get("DYN_DEBUG", "") not in ("", "0")


def _warn_of_misspelt_variables() -> None:
    if any(name.startswith("DYN") for name in os.environ):
        # Not before it is needed: it takes pydantic, which is slow to import.
        from dynamo.config.variables import misspelt_variables

        for sentence in misspelt_variables(os.environ):
            click.echo(f"{click.style('Warning:', fg='yellow', bold=True)} {sentence}", err=True)


def _print_error(error: DynamoError, *, with_traceback: bool) -> None:
    if with_traceback:
        traceback.print_exception(error)
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {error.message}", err=True)
    if error.hint:
        click.echo(error.hint, err=True)
