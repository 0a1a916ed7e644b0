"""pythonic: Llama 3.2 and 4, ToolACE and others, calls as a list in Python.

    [get_weather(city="Oslo", days=3), get_time(zone='CET')]
    <|python_start|>[get_weather(city="Oslo")]<|python_end|>

Without the marker, calls are looked for only where the answer begins. A call is sent when its parenthesis closes:
only then is it known to be one (``[f(x) for x in y]`` is code). Arguments must be keywords with literals. A call longer
than `CALL_LIMIT` is none: the beginning of it, so long, becomes content.
"""

from __future__ import annotations

from dynamo.parsers.markers import markers
from dynamo.parsers.python_literals import json_of_keywords
from dynamo.parsers.scanner import PYTHON
from dynamo.parsers.source import BoundedText, Malformed, Reading
from dynamo.parsers.stream import ToolCallStream

__all__ = ["Pythonic"]

_NAME_LIMIT = 128


class Pythonic(ToolCallStream):
    """A list of Python calls."""

    tool_markers = ("<|python_start|>", "<|python_tag|>")
    markers = markers("<|python_start|>", "<|python_end|>", "<|python_tag|>")

    def beginning(self) -> Reading[None]:
        """A list without the marker."""
        yield from self._list()

    def block(self, marker: str) -> Reading[None]:  # noqa: ARG002
        """A list behind the marker."""
        yield from self._list()

    def _list(self) -> Reading[None]:
        if (yield from self.leading_space()) != "[" or not (yield from self.attempt(self._call(opener="["))):
            return
        while (yield from self.source.skip()) == ",":
            if not (yield from self.attempt(self._call(opener=","))):
                return
        if (yield from self.source.peek()) == "]":
            self.source.take(1)

    def _call(self, opener: str) -> Reading[None]:
        source = self.source
        yield from source.expect(opener)
        if opener == "," and (yield from source.skip()) == "]":
            return
        yield from source.skip()
        name = yield from source.name(_NAME_LIMIT)
        if not name or not name.replace(".", "_").isidentifier() or (yield from source.peek()) != "(":
            raise Malformed
        raw = BoundedText()
        yield from source.value(raw.write, PYTHON)
        arguments = json_of_keywords(raw.text()[1:-1])
        self.begin_call(name)
        self.write_arguments(arguments)
