"""llama3_json: Llama 3.1 and later, calls as bare JSON.

    {"name": "get_weather", "parameters": {"city": "Oslo"}}
    <|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}; {"name": "get_time", "parameters": {}}

Without the marker, calls are looked for only where the answer begins, and an object is a call only if it has no other
keys and either arguments or the name of an offered function: an answer in JSON stays an answer. Code behind the marker
(Llama's built-in tools) becomes content.
"""

from __future__ import annotations

from dynamo.parsers.json_calls import JsonCall
from dynamo.parsers.markers import markers
from dynamo.parsers.source import Reading
from dynamo.parsers.stream import ToolCallStream

__all__ = ["Llama3Json"]


class Llama3Json(ToolCallStream):
    """Bare JSON, or JSON behind ``<|python_tag|>``."""

    tool_markers = ("<|python_tag|>",)
    markers = markers("<|python_tag|>")

    def beginning(self) -> Reading[None]:
        """Calls without the marker."""
        yield from self._objects(strict=True)

    def block(self, marker: str) -> Reading[None]:  # noqa: ARG002
        """Calls behind the marker."""
        yield from self._objects(strict=False)

    def _objects(self, *, strict: bool) -> Reading[None]:
        character = yield from self.leading_space()
        while character == "{" and (yield from self.attempt(JsonCall(self, strict=strict).read())):
            character = yield from self.source.skip(";,")
