"""Splits the arguments of ``dynamo serve``: flags of the frontend and its router go there, the rest to the engine."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import click

from dynamo.config import settings_options
from dynamo.errors import ConfigError
from dynamo.frontend.settings import FrontendSettings
from dynamo.router.settings import RouterSettings
from dynamo.runtime.settings import RuntimeSettings
from dynamo.serve.settings import ServeSettings
from dynamo.worker.settings import WorkerSettings

__all__ = ["refuse_misspelt_flags", "split_frontend_flags"]

#: ``dynamo serve`` decides these itself; see ``--host``, ``--port`` and ``--frontends``.
_OWN = {"--http-host", "--http-port", "--http-reuse-port", "--no-http-reuse-port"}
#: Of `difflib`: a letter too many, too few or in the wrong place. No flag of the engines that we know is as near.
_NEAR = 0.83


def split_frontend_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of the frontend, and all others in their order. What follows ``--`` is the engine's.

    Flags that other processes of the deployment have too are not taken: they stay with the workers.
    """
    takes_value = _flags(FrontendSettings, RouterSettings)
    for flag in {*_flags(ServeSettings, WorkerSettings, RuntimeSettings), *_OWN}:
        takes_value.pop(flag, None)
    ours: list[str] = []
    others: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument == "--":
            others += [argument, *rest]
            break
        name, equals, _ = argument.partition("=")
        if name not in takes_value:
            others.append(argument)
            continue
        ours.append(argument)
        if takes_value[name] and not equals:
            # Where the value is missing, the frontend says so.
            ours += [value for value in [next(rest, None)] if value is not None]
    return ours, others


def refuse_misspelt_flags(argv: Sequence[str], own: Sequence[str]) -> None:
    """Stop before anything starts when a flag, which the engine would refuse later, is nearly one of ``dynamo serve``.

    Raises:
        ConfigError: with the flag that was meant.
    """
    for argument in takewhile(lambda word: word != "--", argv):
        name = argument.partition("=")[0]
        close = difflib.get_close_matches(name, own, n=1, cutoff=_NEAR) if name.startswith("--") else []
        if close and name not in own:
            raise ConfigError(
                f"dynamo serve has no flag {name}; did you mean {close[0]}?",
                param=name,
                hint="if it is one of the engine, put it behind a --",
            )


def _flags(*settings: Any) -> dict[str, bool]:
    """Every flag of these settings, and whether a value follows it."""

    @click.command()
    @settings_options(*settings)
    def command(**_flags: Any) -> None:
        """Only looked at, never run."""

    options = [option for option in command.params if isinstance(option, click.Option)]
    return {flag: not option.is_flag for option in options for flag in (*option.opts, *option.secondary_opts)}
