"""The chain of parsers that the frontend runs over the text of one choice."""

from __future__ import annotations

import msgspec

from dynamo.parsers.guided import GuidedReasoning, GuidedTextReasoning
from dynamo.plugins import Plugins
from dynamo.protocols.parsing import ParsedDelta, ReasoningOptions, ReasoningParser, ToolCallOptions, ToolCallParser

__all__ = ["OutputParser", "make_output_parser"]


class OutputParser:
    """Separates reasoning first, then takes the tool calls out of the rest.

    Args:
        reasoning: None: the text has no reasoning.
        tool_calls: None: the text has no calls, or none are wanted. One that parses reasoning does so alone.
    """

    __slots__ = ("_reasoning", "_tool_calls", "made_tool_calls", "needs_special_tokens", "reads_reasoning")

    def __init__(self, reasoning: ReasoningParser | None = None, tool_calls: ToolCallParser | None = None) -> None:
        self._reasoning = None if tool_calls is not None and tool_calls.parses_reasoning else reasoning
        self._tool_calls = tool_calls
        self.made_tool_calls = False
        """Whether a call came so far: the finish reason of a stream that stops is then ``tool_calls``."""
        self.needs_special_tokens = any(
            parser is not None and parser.needs_special_tokens for parser in (self._reasoning, tool_calls)
        )
        """Whether the detokenizer must keep special tokens."""
        self.reads_reasoning = self._reasoning is not None or (tool_calls is not None and tool_calls.parses_reasoning)
        """Whether some of the text may be reasoning."""

    def feed(self, text: str) -> ParsedDelta:
        """What `text` adds to the answer."""
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.feed(text)
        if self._tool_calls is None or not text:
            return ParsedDelta(text, reasoning)
        delta = self._tool_calls.feed(text)
        if reasoning:
            delta.reasoning = reasoning
        if delta.tool_calls:
            self.made_tool_calls = True
        return delta

    def finish(self) -> ParsedDelta:
        """What was held back. Nothing may be fed after it."""
        reasoning, text = self._reasoning.finish() if self._reasoning is not None else ("", "")
        if self._tool_calls is None:
            return ParsedDelta(text, reasoning)
        first = self._tool_calls.feed(text) if text else ParsedDelta()
        last = self._tool_calls.finish()
        delta = ParsedDelta(
            first.content + last.content,
            reasoning + first.reasoning + last.reasoning,
            first.tool_calls + last.tool_calls,
        )
        if delta.tool_calls:
            self.made_tool_calls = True
        return delta


def make_output_parser(
    plugins: Plugins,
    *,
    reasoning: str | None = None,
    tool_calls: str | None = None,
    reasoning_options: ReasoningOptions | None = None,
    tool_call_options: ToolCallOptions | None = None,
    guided: bool = False,
    guided_text: bool = False,
) -> OutputParser:
    """Make the parsers of these names; None or empty: none. `guided`: a grammar forces the answer.

    That answer is JSON, unless `guided_text` says that it may be anything.

    Raises:
        PluginNotFound, PluginConflict, PluginError: a name is not installed, or cannot be imported.
    """
    tool_parser = (
        plugins.tool_call_parsers.get(tool_calls)(tool_call_options or ToolCallOptions()) if tool_calls else None
    )
    if not reasoning:
        return OutputParser(None, tool_parser)
    options = reasoning_options or ReasoningOptions()
    if tool_parser is not None and not options.tool_markers:
        options = msgspec.structs.replace(options, tool_markers=tuple(tool_parser.tool_markers))
    parser: ReasoningParser = plugins.reasoning_parsers.get(reasoning)(options)
    if guided:
        parser = GuidedTextReasoning(parser) if guided_text else GuidedReasoning(parser)
    return OutputParser(parser, tool_parser)
