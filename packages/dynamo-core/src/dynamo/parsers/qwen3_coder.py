"""qwen3_coder: Qwen3-Coder, Qwen3.5 and others, calls as tags.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Oslo
    </parameter>
    <parameter=days>
    3
    </parameter>
    </function>
    </tool_call>

The outer tags may be missing, and so may the closing tag of a parameter.
"""

from __future__ import annotations

from dynamo.parsers.markers import markers
from dynamo.parsers.source import Malformed, Reading
from dynamo.parsers.stream import ToolCallStream
from dynamo.parsers.tagged_arguments import TaggedArguments

__all__ = ["Qwen3Coder"]

_NAME_LIMIT = 256
_NAME_ENDS = markers(">", "<", "\n")
_VALUE_ENDS = markers("</parameter>", "<parameter=", "</function>", "</tool_call>")


class Qwen3Coder(ToolCallStream):
    """``<function=NAME><parameter=NAME>VALUE</parameter></function>``."""

    tool_markers = ("<tool_call>", "<function=")
    markers = markers("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>")

    def block(self, marker: str) -> Reading[None]:
        """Read one function, if the marker begins one."""
        if marker == "<function=":
            yield from self.attempt(self._function())

    def _function(self) -> Reading[None]:
        name = yield from self._name()
        self.begin_call(name)
        arguments = TaggedArguments(self, name, _VALUE_ENDS, guess_types=False, trim_line_breaks=True)
        while (marker := (yield from self.skip_to_marker())) in ("<parameter=", "</parameter>"):
            self.source.take(len(marker))
            if marker == "<parameter=":
                yield from arguments.member((yield from self._name()))
        arguments.close()

    def _name(self) -> Reading[str]:
        """Read a name and the bracket behind it."""
        name, end = yield from self.source.header(_NAME_ENDS, _NAME_LIMIT)
        name = name.strip()
        if end != ">" or not name:
            raise Malformed
        self.source.take(1)
        return name
