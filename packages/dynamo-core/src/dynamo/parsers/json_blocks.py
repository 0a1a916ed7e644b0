"""Formats that put JSON calls between two markers, or behind one.

hermes (Nous Hermes, Qwen 2.5, Qwen 3)::

    I will look.
    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    </tool_call>

nemotron_deci::

    <TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]</TOOLCALL>

jamba::

    <tool_calls>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]</tool_calls>

phi4 (Phi-4-mini)::

    functools[{"name": "get_weather", "arguments": {"city": "Oslo"}}]

granite (3.x)::

    <|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]

A block may hold one object, several, or a list.
"""

from __future__ import annotations

from dynamo.parsers.json_calls import read_calls, read_list_items
from dynamo.parsers.markers import markers
from dynamo.parsers.source import Reading
from dynamo.parsers.stream import ToolCallStream

__all__ = ["Granite", "Hermes", "Jamba", "JsonBlocks", "NemotronDeci", "Phi4"]


class JsonBlocks(ToolCallStream):
    """JSON calls behind each of `tool_markers`; the other markers end a block."""

    def block(self, marker: str) -> Reading[None]:  # noqa: ARG002
        """Read the calls of one block; what is none is left to the content."""
        while (yield from self.source.skip(",")) in "{[":
            before = self.calls
            yield from read_calls(self)
            if self.calls == before:
                return


class Hermes(JsonBlocks):
    """``<tool_call>{...}</tool_call>``."""

    tool_markers = ("<tool_call>",)
    markers = markers("<tool_call>", "</tool_call>")


class NemotronDeci(JsonBlocks):
    """``<TOOLCALL>[{...}]</TOOLCALL>``."""

    tool_markers = ("<TOOLCALL>",)
    markers = markers("<TOOLCALL>", "</TOOLCALL>")


class Jamba(JsonBlocks):
    """``<tool_calls>[{...}]</tool_calls>``."""

    tool_markers = ("<tool_calls>",)
    markers = markers("<tool_calls>", "</tool_calls>")


class Phi4(JsonBlocks):
    """``functools[{...}]``."""

    tool_markers = ("functools[",)
    markers = markers("functools[")

    def block(self, marker: str) -> Reading[None]:  # noqa: ARG002
        """Read the list, whose bracket belongs to the marker: the bare word may well occur in an answer."""
        yield from read_list_items(self)


class Granite(JsonBlocks):
    """``<|tool_call|>[{...}]``; some versions write the marker without bars."""

    tool_markers = ("<|tool_call|>", "<tool_call>")
    markers = markers("<|tool_call|>", "<tool_call>", "</tool_call>")
