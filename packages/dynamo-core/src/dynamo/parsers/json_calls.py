"""Reads calls that are JSON objects with a name and arguments. For the formats that write calls so.

    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    {"type": "function", "function": {"name": "get_weather", "parameters": {"city": "Oslo"}}}

Keys may come in any order. Arguments are passed on as written, while they arrive; arguments in a JSON string are
unpacked, missing ones and ``null`` are ``{}``.
"""

from __future__ import annotations

from dynamo.parsers.source import BoundedText, Malformed, Reading
from dynamo.parsers.stream import ToolCallStream

__all__ = ["JsonCall", "read_arguments", "read_calls", "read_list_items"]

_NAME_KEYS = frozenset({"name", "function", "tool_name"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters", "args"})
#: What else an object may hold, if it stands where it could be an ordinary answer in JSON.
_OTHER_KEYS = frozenset({"id", "type"})


def read_calls(stream: ToolCallStream) -> Reading[None]:
    """Read an object, or a list of them, from here; what turns out to be no call becomes content."""
    character = yield from stream.source.skip()
    if character == "{":
        yield from stream.attempt(JsonCall(stream).read())
    elif character == "[":
        yield from stream.attempt(_open_list(stream))
        yield from read_list_items(stream)


def read_list_items(stream: ToolCallStream) -> Reading[None]:
    """Read objects and the bracket that ends their list."""
    while (yield from stream.source.skip(",")) == "{":
        yield from stream.attempt(JsonCall(stream).read())
    if (yield from stream.source.peek()) == "]":
        stream.source.take(1)


def _open_list(stream: ToolCallStream) -> Reading[None]:
    stream.source.take(1)
    if (yield from stream.source.skip()) not in "{]":
        raise Malformed


def read_arguments(stream: ToolCallStream) -> Reading[None]:
    """Read one JSON value as the arguments of the call that was begun last."""
    character = yield from stream.source.skip()
    if character in "{[":
        yield from stream.source.value(stream.write_arguments)
    else:
        stream.write_arguments((yield from _read_scalar(stream)))


def _read_scalar(stream: ToolCallStream) -> Reading[str]:
    source = stream.source
    if (yield from source.peek()) == '"':
        return (yield from source.string()) or "{}"
    raw = BoundedText()
    yield from source.value(raw.write)
    text = raw.text()
    return "{}" if text == "null" else text


class JsonCall:
    """One call as a JSON object.

    Args:
        stream: where it is read from, and told to.
        strict: the object could be an ordinary answer: it is a call only if it has no other keys and either arguments
            or the name of a function that the request offers.
    """

    def __init__(self, stream: ToolCallStream, *, strict: bool = False) -> None:
        self._stream = stream
        self._source = stream.source
        self._strict = strict
        self._name: str | None = None
        self._early: str | None = None
        """Arguments that came before the name."""
        self._begun = False

    def read(self) -> Reading[None]:
        """Read the object.

        Raises:
            Malformed: it is no object, or no call.
        """
        yield from self._members()
        if self._begun:
            return
        offered = any(tool.name == self._name for tool in self._stream.options.tools)
        if not self._name or (self._strict and not offered):
            raise Malformed
        self._begin()
        self._stream.write_arguments("{}")

    def _members(self, *, nested: bool = False) -> Reading[None]:
        source = self._source
        yield from source.expect("{")
        while (yield from source.skip(",")) != "}":
            key = yield from source.string()
            yield from source.expect(":")
            yield from source.skip()
            yield from self._member(key, nested=nested)
        source.take(1)

    def _member(self, key: str, *, nested: bool) -> Reading[None]:
        source = self._source
        character = yield from source.peek()
        if key in _NAME_KEYS and not self._begun:
            if key == "function" and character == "{" and not nested:
                yield from self._members(nested=True)
            else:
                self._name = yield from source.string()
                self._begin_if_complete()
        elif key in _ARGUMENT_KEYS and not self._begun:
            yield from self._arguments()
        elif self._strict and key not in _OTHER_KEYS:
            raise Malformed
        else:
            yield from source.value(lambda _: None)

    def _arguments(self) -> Reading[None]:
        if self._name:
            self._begin()
            yield from read_arguments(self._stream)
        elif (yield from self._source.peek()) in "{[":
            held = BoundedText()
            yield from self._source.value(held.write)
            self._early = held.text()
        else:
            self._early = yield from _read_scalar(self._stream)

    def _begin_if_complete(self) -> None:
        if self._name and self._early is not None:
            self._begin()
            self._stream.write_arguments(self._early)

    def _begin(self) -> None:
        assert self._name
        self._begun = True
        self._stream.begin_call(self._name)
