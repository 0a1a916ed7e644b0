"""Parsers: how reasoning and tool calls are read out of generated text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.hookspecs import hookspec

if TYPE_CHECKING:
    from dynamo.protocols.parsing import ReasoningOptions, ReasoningParser, ToolCallOptions, ToolCallParser
    from dynamo.protocols.registry import Registry

__all__ = ["dynamo_register_parsers"]


@hookspec
def dynamo_register_parsers(
    tool_calls: Registry[Callable[[ToolCallOptions], ToolCallParser]],
    reasoning: Registry[Callable[[ReasoningOptions], ReasoningParser]],
) -> None:
    """Register parsers by the names that ``--dyn-tool-call-parser`` and ``--dyn-reasoning-parser`` take.

    A target makes one :class:`~dynamo.protocols.parsing.ToolCallParser` or
    :class:`~dynamo.protocols.parsing.ReasoningParser` per answer.
    """
