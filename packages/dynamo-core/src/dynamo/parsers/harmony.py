"""harmony: gpt-oss, where every message names its channel.

    <|channel|>analysis<|message|>I need the weather.<|end|><|start|>assistant<|channel|>commentary
    to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>
    <|channel|>analysis<|message|>I know it.<|end|><|start|>assistant<|channel|>final<|message|>It rains.<|return|>

The prompt ends with ``<|start|>assistant``; ``<|call|>`` and ``<|return|>`` stop the engine and are not in the text.
A message to a function is a call; ``analysis`` is reasoning, as are messages to the model's built-in tools; ``final``
and ``commentary`` (what it says before a call) are content, and so is text outside of messages. A header that is not
followed by a message is dropped. Analyses of one answer are joined by a line break.
"""

from __future__ import annotations

import re
from typing import ClassVar

from dynamo.parsers.markers import markers
from dynamo.parsers.source import Malformed, Reading
from dynamo.parsers.stream import ToolCallStream
from dynamo.protocols.parsing import ParsedDelta, ReasoningOptions, ToolCallOptions

__all__ = ["GptOssReasoning", "Harmony"]

_HEADER_LIMIT = 512
_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=(\S+)")


class Harmony(ToolCallStream):
    """Messages on channels: reasoning, content and calls in one pass."""

    parses_reasoning = True
    tool_markers = (_START, _CHANNEL, _MESSAGE)
    markers = markers(_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_ENDS)
    reads_calls: ClassVar[bool] = True

    def __init__(self, options: ToolCallOptions) -> None:
        self._reasoning: list[str] = []
        self._in_reasoning = False
        self._reasoned = False
        super().__init__(options)

    def feed(self, text: str) -> ParsedDelta:
        """See `dynamo.protocols.parsing.ToolCallParser`."""
        if self._in_reasoning and self.markers.absent(text):
            return ParsedDelta("", text)
        self._in_reasoning = False
        delta = super().feed(text)
        return self._with_reasoning(delta) if self._reasoning else delta

    def finish(self) -> ParsedDelta:
        """See `dynamo.protocols.parsing.ToolCallParser`."""
        return self._with_reasoning(super().finish())

    def block(self, marker: str) -> Reading[None]:
        """Read one message whose header begins with `marker`."""
        try:
            channel, recipient = yield from self._header(marker)
        except Malformed:
            return
        function = self._function(recipient) if recipient else None
        if function is not None:
            yield from self._call(function)
        elif channel == "analysis" or recipient:
            yield from self._analysis()
        else:
            yield from self._text()

    def _with_reasoning(self, delta: ParsedDelta) -> ParsedDelta:
        delta.reasoning = "".join(self._reasoning)
        self._reasoning = []
        return delta

    def _header(self, marker: str) -> Reading[tuple[str, str | None]]:
        """Read up to the message: ``(channel, recipient)``."""
        channel, recipient = "", None
        while marker != _MESSAGE:
            text, following = yield from self.source.header(self.markers, _HEADER_LIMIT)
            words = text.split()
            if marker == _CHANNEL and words and not channel:
                channel = words[0]
            found = _RECIPIENT.search(text)
            recipient = found[1] if found else recipient
            if following in _ENDS:
                raise Malformed
            self.source.take(len(following))
            marker = following
        return channel, recipient

    def _function(self, recipient: str) -> str | None:
        """The function that a message goes to; None for built-in tools."""
        name = recipient.removeprefix("functions.")
        if not self.reads_calls or not name:
            return None
        offered = any(tool.name == name for tool in self.options.tools)
        return name if offered or recipient.startswith("functions.") else None

    def _call(self, name: str) -> Reading[None]:
        self.begin_call(name)
        empty = True
        while True:
            text, ended = self._body()
            self.write_arguments(text)
            empty = empty and not text
            if ended:
                break
            yield from self.source.more()
        if empty:
            self.write_arguments("{}")

    def _analysis(self) -> Reading[None]:
        separator = "\n" if self._reasoned else ""
        while True:
            text, ended = self._body()
            if text:
                self._reasoning.append(separator + text)
                self._reasoned = True
                separator = ""
            if ended:
                return
            self._in_reasoning = self.source.exhausted and self._reasoned and not separator
            yield from self.source.more()

    def _text(self) -> Reading[None]:
        while True:
            text, ended = self._body()
            self.write_content(text)
            if ended:
                return
            self._in_content = self.source.exhausted and not self._only_blank
            yield from self.source.more()

    def _body(self) -> tuple[str, bool]:
        """Read text of a message; whether it ended. The marker of a next message stays unread."""
        pieces = []
        while True:
            size, marker = self.source.ahead(self.markers)
            pieces.append(self.source.take(size))
            ended = marker in _ENDS or marker in (_START, _CHANNEL)
            if marker is not None and marker not in (_START, _CHANNEL):
                self.source.take(len(marker))
            if marker is None or ended:
                return "".join(pieces), ended


class _WithoutCalls(Harmony):
    reads_calls = False


class GptOssReasoning:
    """The same format where no tool-call parser is in use: messages to functions count as reasoning."""

    needs_special_tokens: ClassVar[bool] = True

    def __init__(self, options: ReasoningOptions) -> None:  # noqa: ARG002
        self._messages = _WithoutCalls(ToolCallOptions())

    def feed(self, text: str) -> tuple[str, str]:
        """See `dynamo.protocols.parsing.ReasoningParser`."""
        delta = self._messages.feed(text)
        return delta.reasoning, delta.content

    def finish(self) -> tuple[str, str]:
        """See `dynamo.protocols.parsing.ReasoningParser`."""
        delta = self._messages.finish()
        return delta.reasoning, delta.content
