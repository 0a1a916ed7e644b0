"""mistral: Mistral and Mixtral, before and after the tokenizer of version 11.

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}]
    [TOOL_CALLS]get_weather{"city": "Oslo"}[TOOL_CALLS]get_time{}
    [TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Oslo"}

Ids have nine characters: Mistral's chat templates refuse others when the conversation goes on.
"""

from __future__ import annotations

import re

from dynamo.parsers.json_calls import read_arguments, read_calls
from dynamo.parsers.markers import markers
from dynamo.parsers.source import Malformed, Reading
from dynamo.parsers.stream import ToolCallStream

__all__ = ["Mistral"]

_ID_CHARACTERS = 9
_NAME_LIMIT = 128
_ID = re.compile(r"[A-Za-z0-9]{9}\Z")


class Mistral(ToolCallStream):
    """``[TOOL_CALLS]`` and a JSON list, or a name and its arguments."""

    tool_markers = ("[TOOL_CALLS]",)
    markers = markers("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")

    def block(self, marker: str) -> Reading[None]:  # noqa: ARG002
        """Read a list of calls, or one call."""
        character = yield from self.source.skip()
        if (yield from self.source.marker_here(self.markers)) is not None:
            return
        if character in "{[":
            yield from read_calls(self)
        else:
            yield from self.attempt(self._named_call())

    def begin_call(self, name: str, call_id: str | None = None) -> None:
        """A call, with an id as Mistral's templates want it."""
        super().begin_call(name, call_id or self.options.make_id()[-_ID_CHARACTERS:])

    def _named_call(self) -> Reading[None]:
        source = self.source
        name = yield from source.name(_NAME_LIMIT)
        call_id = None
        marker = yield from source.marker_here(self.markers)
        if marker == "[CALL_ID]":
            source.take(len(marker))
            call_id, marker = yield from source.header(self.markers, _NAME_LIMIT)
        if marker == "[ARGS]":
            source.take(len(marker))
        if not name or (yield from source.skip()) != "{":
            raise Malformed
        self.begin_call(name, call_id if call_id and _ID.match(call_id) else None)
        yield from read_arguments(self)
