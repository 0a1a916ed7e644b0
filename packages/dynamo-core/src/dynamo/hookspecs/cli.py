"""Commands of the ``dynamo`` program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.hookspecs import hookspec

if TYPE_CHECKING:
    from dynamo.protocols.commands import CommandGroup

__all__ = ["dynamo_register_commands"]


@hookspec
def dynamo_register_commands(group: CommandGroup) -> None:
    """Add subcommands to ``dynamo``; lazily, so that ``dynamo --help`` imports none of them."""
