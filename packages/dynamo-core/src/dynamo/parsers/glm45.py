"""glm45: GLM-4.5 to 4.7, calls as tags.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Oslo</arg_value>
    <arg_key>days</arg_key>
    <arg_value>3</arg_value>
    </tool_call>

Line breaks between tags are optional. Values of unknown type are read as JSON if they are JSON, since the model writes
everything but strings so.
"""

from __future__ import annotations

import re

from dynamo.parsers.markers import markers
from dynamo.parsers.source import Malformed, Reading
from dynamo.parsers.stream import ToolCallStream
from dynamo.parsers.tagged_arguments import TaggedArguments

__all__ = ["Glm45"]

_NAME_LIMIT = 256
_NAME = re.compile(r"[\w.:/-]+\Z")
_VALUE_ENDS = markers("</arg_value>", "<arg_key>", "</tool_call>")


class Glm45(ToolCallStream):
    """``<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>``."""

    tool_markers = ("<tool_call>",)
    markers = markers("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")

    def block(self, marker: str) -> Reading[None]:  # noqa: ARG002
        """Read one call."""
        yield from self.attempt(self._call())

    def _call(self) -> Reading[None]:
        name, end = yield from self.source.header(self.markers, _NAME_LIMIT)
        name = name.strip()
        if end not in ("<arg_key>", "</tool_call>") or not _NAME.match(name):
            raise Malformed
        self.begin_call(name)
        arguments = TaggedArguments(self, name, _VALUE_ENDS, guess_types=True, trim_line_breaks=False)
        key = ""
        while (marker := (yield from self.skip_to_marker())) not in ("</tool_call>", "<tool_call>"):
            self.source.take(len(marker))
            if marker == "<arg_key>":
                key, _ = yield from self.source.header(self.markers, _NAME_LIMIT)
            elif marker == "<arg_value>":
                yield from arguments.member(key.strip())
        arguments.close()
