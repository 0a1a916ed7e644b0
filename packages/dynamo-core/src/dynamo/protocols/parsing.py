"""What reads reasoning and tool calls out of generated text (DESIGN 4, hook `dynamo_register_parsers`).

Parsers are synchronous and see every piece of text once: one object per choice, `feed` for each piece, `finish` at the
end. How the text is cut into pieces must not change the concatenated result, and no text may raise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec

__all__ = [
    "ParsedDelta",
    "ReasoningOptions",
    "ReasoningParser",
    "ToolCallDelta",
    "ToolCallOptions",
    "ToolCallParser",
    "ToolFunction",
    "new_tool_call_id",
]


def new_tool_call_id() -> str:
    """``call_`` and 24 random hexadecimal digits."""
    return f"call_{os.urandom(12).hex()}"


class ToolFunction(msgspec.Struct, frozen=True):
    """A function that the request offers."""

    name: str
    parameters: dict[str, Any] = {}
    """JSON schema of the arguments; formats without types of their own look types up here."""


class ToolCallOptions(msgspec.Struct, frozen=True):
    """What a tool-call parser may know of the request."""

    tools: Sequence[ToolFunction] = ()
    """Calls of other functions are passed on: whether to refuse them is the client's choice."""
    tool_choice: Literal["auto", "none", "required", "named"] = "auto"
    named_function: str | None = None
    """The function of `tool_choice` ``named``."""
    make_id: Callable[[], str] = new_tool_call_id
    """Names each call; formats whose calls carry their own id use that one."""


class ReasoningOptions(msgspec.Struct, frozen=True):
    """What a reasoning parser may know of the request."""

    prompt_tail: str = ""
    """End of the rendered prompt, special tokens included: some templates open (or close) the reasoning there."""
    tool_markers: tuple[str, ...] = ()
    """Where a tool call begins: what looks like reasoning behind it belongs to the call's arguments."""


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """What one piece of text adds to one tool call. The first delta of a call has its `id` and `name`."""

    index: int
    """0 for the first call of the answer, then one more for each."""
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    """Text to append to the arguments, which are JSON unless the model wrote them wrong or was stopped within."""


class ParsedDelta(msgspec.Struct, omit_defaults=True):
    """What one piece of text adds to an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []


class ReasoningParser(Protocol):
    """Splits text into reasoning and the rest."""

    @property
    def needs_special_tokens(self) -> bool:
        """Whether the text must be detokenized with special tokens: the format's markers are such."""
        ...

    def feed(self, text: str) -> tuple[str, str]:
        """``(reasoning, content)`` that `text` completes; either may be empty."""
        ...

    def finish(self) -> tuple[str, str]:
        """``(reasoning, content)`` that was held back. Nothing is fed after it."""
        ...


class ToolCallParser(Protocol):
    """Takes tool calls out of text."""

    @property
    def needs_special_tokens(self) -> bool:
        """Whether the text must be detokenized with special tokens: the format's markers are such."""
        ...

    @property
    def parses_reasoning(self) -> bool:
        """Whether it separates reasoning too, because the format cannot be read in two passes."""
        ...

    @property
    def tool_markers(self) -> tuple[str, ...]:
        """Markers that begin a call; empty when calls are recognised by their syntax."""
        ...

    def feed(self, text: str) -> ParsedDelta:
        """Content and calls that `text` completes; names come before arguments, arguments as they arrive."""
        ...

    def finish(self) -> ParsedDelta:
        """What was held back. Nothing is fed after it."""
        ...
