"""What the cli hook receives."""

from __future__ import annotations

from typing import Protocol

import click

__all__ = ["CommandGroup"]


class CommandGroup(Protocol):
    """The ``dynamo`` command, to which plugins add subcommands."""

    def add_lazy_command(self, name: str, target: str, summary: str) -> None:
        """Add ``dynamo NAME``; ``"package.module:command"`` is imported when somebody runs it or asks for its help.

        Raises:
            PluginError: the import string is malformed.
        """
        ...

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command that is already loaded."""
        ...
