"""Answers that a JSON schema, or another grammar, forces. guided_json reads calls, whatever the model's own format is.

For `tool_choice` ``required`` the schema is a list of calls, for ``named`` it is the function's arguments::

    [{"name": "get_weather", "parameters": {"city": "Oslo"}}]
    {"city": "Oslo"}

The frontend takes this parser in place of the model's where it guides decoding so.
"""

from __future__ import annotations

from typing import ClassVar

from dynamo.parsers.json_blocks import Hermes
from dynamo.parsers.json_calls import read_arguments, read_calls
from dynamo.parsers.source import Malformed, Reading
from dynamo.protocols.parsing import ReasoningParser

__all__ = ["GuidedCalls", "GuidedReasoning", "GuidedTextReasoning"]

#: White space held back until it is known what follows.
_BLANK_LIMIT = 4096


class GuidedCalls(Hermes):
    """Bare JSON; where the engine could not be guided, hermes, which many models fall back to."""

    needs_special_tokens = False

    def beginning(self) -> Reading[None]:
        """Read what the schema forces."""
        character = yield from self.leading_space()
        if self.options.tool_choice == "named" and self.options.named_function:
            yield from self.attempt(self._arguments(self.options.named_function))
        elif character in "{[":
            yield from read_calls(self)

    def _arguments(self, function: str) -> Reading[None]:
        if (yield from self.source.peek()) != "{":
            raise Malformed
        self.begin_call(function)
        yield from read_arguments(self)


class GuidedReasoning:
    """The reasoning before an answer that a schema forces: there is none where the text begins as JSON does.

    Some engines let a model think before its grammar holds, others do not, and the prompt does not tell. A parser that
    takes what comes first for reasoning would take all of a bare answer.
    """

    _JSON: ClassVar[tuple[str, ...]] = ("{", "[")

    def __init__(self, parser: ReasoningParser) -> None:
        """`parser` is the model's."""
        self.needs_special_tokens = parser.needs_special_tokens
        self._parser: ReasoningParser | None = parser
        """None: the text is a bare answer."""
        self._undecided = True
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """See `dynamo.protocols.parsing.ReasoningParser`."""
        if self._undecided:
            text = self._held + text
            begun = text.lstrip()
            few_blanks = len(text) - len(begun) <= _BLANK_LIMIT
            if few_blanks and not begun:
                self._held = text
                return "", ""
            self._undecided = False
            self._held = ""
            if few_blanks and begun.startswith(self._JSON):
                self._parser = None
        return ("", text) if self._parser is None else self._parser.feed(text)

    def finish(self) -> tuple[str, str]:
        """See `dynamo.protocols.parsing.ReasoningParser`."""
        if self._parser is None:
            return "", ""
        reasoning, content = self._parser.feed(self._held) if self._held else ("", "")
        last = self._parser.finish()
        return reasoning + last[0], content + last[1]


class GuidedTextReasoning:
    """The reasoning before an answer that a grammar forces whose text may be anything, such as one of some words.

    Nothing tells a bare answer from reasoning but its end: what the model's parser takes for reasoning is held until
    something follows it, and is the answer where nothing does.
    """

    def __init__(self, parser: ReasoningParser) -> None:
        """`parser` is the model's."""
        self.needs_special_tokens = parser.needs_special_tokens
        self._parser = parser
        self._answering = False
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """See `dynamo.protocols.parsing.ReasoningParser`."""
        return self._told(*self._parser.feed(text))

    def finish(self) -> tuple[str, str]:
        """See `dynamo.protocols.parsing.ReasoningParser`."""
        reasoning, content = self._told(*self._parser.finish())
        held, self._held = self._held, ""
        return reasoning, content + held

    def _told(self, reasoning: str, content: str) -> tuple[str, str]:
        self._answering = self._answering or bool(content.strip())
        if not self._answering:
            self._held += reasoning
            return "", content
        reasoning, self._held = self._held + reasoning, ""
        return reasoning, content
