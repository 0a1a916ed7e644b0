"""Runs parsers by name over text in pieces, and collects what comes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from dynamo.parsers import OutputParser, make_output_parser
from dynamo.plugins import plugins
from dynamo.protocols.parsing import ReasoningOptions, ToolCallOptions, ToolFunction

TOOLS = (
    ToolFunction(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["celsius", "kelvin"]},
                "where": {"type": ["string", "null"]},
                "tags": {"type": "array"},
                "anything": {"type": ["string", "integer"]},
                "odd": "not a schema",
            },
        },
    ),
    ToolFunction("get_time"),
)


@dataclass
class Answer:
    """What a client would have put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)

    def add(self, parser: OutputParser, pieces: Iterable[str]) -> Answer:
        for delta in itertools.chain(map(parser.feed, pieces), (parser.finish() for _ in [0])):
            self.content += delta.content
            self.reasoning += delta.reasoning
            for call in delta.tool_calls:
                if call.name is not None:
                    assert call.index == len(self.calls), "calls are numbered from 0, and named first"
                    self.calls.append((call.name, ""))
                    self.ids.append(call.id)
                else:
                    assert call.index == len(self.calls) - 1, "calls come one after the other"
                    assert call.id is None
                name, arguments = self.calls[call.index]
                self.calls[call.index] = (name, arguments + call.arguments)
        assert parser.made_tool_calls == bool(self.calls)
        return self


Parse = Callable[..., Answer]


@pytest.fixture(scope="session")
def parse() -> Parse:
    """``parse(text, tool_calls=NAME, reasoning=NAME, prompt=TAIL, pieces=LIST)``."""

    def run(
        text: str = "",
        *,
        tool_calls: str = "",
        reasoning: str = "",
        prompt: str = "",
        pieces: Iterable[str] | None = None,
        tools: tuple[ToolFunction, ...] = TOOLS,
    ) -> Answer:
        numbers = itertools.count()
        parser = make_output_parser(
            plugins(),
            reasoning=reasoning,
            tool_calls=tool_calls,
            reasoning_options=ReasoningOptions(prompt_tail=prompt),
            tool_call_options=ToolCallOptions(tools=tools, make_id=lambda: f"call_{next(numbers):024x}"),
        )
        return Answer().add(parser, [text] if pieces is None else pieces)

    return run
