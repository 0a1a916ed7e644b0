"""Arguments that are written as tagged text, one by one, and typed by the function's JSON schema.

Shared by the formats qwen3_coder and glm45. Text of a string parameter is sent as it comes; other values are held to
their end, as ``true`` may be a boolean or the beginning of a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dynamo.parsers.markers import Markers
from dynamo.parsers.python_literals import json_of_literal, json_text
from dynamo.parsers.source import BoundedText, Malformed, Reading
from dynamo.parsers.stream import ToolCallStream

__all__ = ["TaggedArguments"]


class TaggedArguments:
    """Writes the arguments of one call, which has begun.

    Args:
        stream: where they are read from, and told to.
        function: the function that is called.
        ends: markers of which each ends a value.
        guess_types: read parameters of unknown type as JSON if they are JSON; else they are strings.
        trim_line_breaks: one line break at each end of a value belongs to the format.
    """

    def __init__(
        self, stream: ToolCallStream, function: str, ends: Markers, *, guess_types: bool, trim_line_breaks: bool
    ) -> None:
        self._stream = stream
        self._ends = ends
        self._guess_types = guess_types
        self._trim = trim_line_breaks
        self._schemas = _parameter_schemas(stream, function)
        self._members = 0

    def member(self, name: str) -> Reading[None]:
        """Read a value up to the marker that ends it, which stays unread."""
        stream = self._stream
        stream.write_arguments(f"{', ' if self._members else '{'}{json_text(name)}: ")
        self._members += 1
        schema = self._schemas.get(name)
        if _is_text(schema) if schema is not None else not self._guess_types:
            stream.write_arguments('"')
            yield from self._text()
            stream.write_arguments('"')
        else:
            value = BoundedText()
            yield from self._pieces(value)
            stream.write_arguments(_typed(value.text()))

    def close(self) -> None:
        """No more arguments follow."""
        self._stream.write_arguments("}" if self._members else "{}")

    def _text(self) -> Reading[None]:
        yield from self._pieces(_Escaped(self._stream))

    def _pieces(self, target: BoundedText | _Escaped) -> Reading[None]:
        source = self._stream.source
        at_start, held = self._trim, ""
        while True:
            size, marker = source.ahead(self._ends)
            text = source.take(size)
            if at_start and text:
                at_start = False
                text = text.removeprefix("\n")
            text = held + text
            held = "\n" if self._trim and text.endswith("\n") else ""
            target.write(text.removesuffix(held))
            if marker is not None:
                return
            yield from source.more()


class _Escaped:
    """Passes text on as the inside of a JSON string."""

    __slots__ = ("_stream",)

    def __init__(self, stream: ToolCallStream) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write_arguments(json_text(text)[1:-1])


def _parameter_schemas(stream: ToolCallStream, function: str) -> dict[str, Mapping[str, Any]]:
    tool = next((tool for tool in stream.options.tools if tool.name == function), None)
    properties = tool.parameters.get("properties") if tool is not None else None
    # Schemas come from clients: whatever has not the expected form says nothing.
    if not isinstance(properties, Mapping):
        return {}
    return {name: schema for name, schema in properties.items() if isinstance(schema, Mapping)}


def _is_text(schema: Mapping[str, Any]) -> bool:
    """Whether `schema` allows strings (or null) only."""
    kind = schema.get("type")
    if isinstance(kind, str):
        return kind == "string"
    if isinstance(kind, list):
        return "string" in kind and set(map(str, kind)) <= {"string", "null"}
    values = schema.get("enum")
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)


def _typed(text: str) -> str:
    """JSON for a value whose type is not text: JSON as it stands, Python's literals, or else a string after all."""
    value = text.strip()
    try:
        msgspec.json.decode(value, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        pass
    else:
        return value
    try:
        return json_of_literal(value)
    except Malformed:
        return json_text(text)
