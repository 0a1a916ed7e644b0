"""kimi_k2: Kimi K2.

    <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Oslo"}
    <|tool_call_end|><|tool_calls_section_end|>

The model names each call itself, and its chat template wants to see the same id again: it is kept.
"""

from __future__ import annotations

import re

from dynamo.parsers.json_calls import read_arguments
from dynamo.parsers.markers import markers
from dynamo.parsers.source import Malformed, Reading
from dynamo.parsers.stream import ToolCallStream

__all__ = ["KimiK2"]

_NAME_LIMIT = 256
_CALL = "<|tool_call_begin|>"
_ARGUMENTS = "<|tool_call_argument_begin|>"
_ID = re.compile(r"(?:functions\.)?(?P<name>[^\s:]+)(?P<number>:\d+)?\Z")


class KimiK2(ToolCallStream):
    """Sections of calls between special tokens."""

    tool_markers = ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", _CALL)
    markers = markers(
        *tool_markers, _ARGUMENTS, "<|tool_call_end|>", "<|tool_calls_section_end|>", "<|tool_call_section_end|>"
    )

    def block(self, marker: str) -> Reading[None]:
        """Read one call, if the marker begins one."""
        if marker == _CALL:
            yield from self.attempt(self._call())

    def _call(self) -> Reading[None]:
        call_id, marker = yield from self.source.header(self.markers, _NAME_LIMIT)
        match = _ID.match(call_id.strip())
        if marker != _ARGUMENTS or match is None:
            raise Malformed
        self.source.take(len(marker))
        self.begin_call(match["name"], match[0] if match["number"] else None)
        yield from read_arguments(self)
