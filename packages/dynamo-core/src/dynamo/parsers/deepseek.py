"""deepseek_v3 and deepseek_v3_1: one parser reads both forms.

V3 and R1 name the kind of tool before the separator, and fence the arguments::

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
    ```json
    {"city": "Oslo"}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1 does neither::

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜>
    <｜tool▁calls▁end｜>
"""

from __future__ import annotations

from dynamo.parsers.json_calls import read_arguments
from dynamo.parsers.markers import markers
from dynamo.parsers.source import Malformed, Reading
from dynamo.parsers.stream import ToolCallStream

__all__ = ["DeepSeekV3"]

_NAME_LIMIT = 256
_CALL = "<｜tool▁call▁begin｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_FENCE_LIMIT = 64
_NAME_ENDS = markers("\n", "`", "{", "<")
_FENCE_ENDS = markers("{", "<")


class DeepSeekV3(ToolCallStream):
    """Sections of calls between special tokens."""

    tool_markers = ("<｜tool▁calls▁begin｜>", _CALL)
    markers = markers(*tool_markers, _SEPARATOR, "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")

    def block(self, marker: str) -> Reading[None]:
        """Read one call, if the marker begins one."""
        if marker == _CALL:
            yield from self.attempt(self._call())

    def _call(self) -> Reading[None]:
        source = self.source
        name, marker = yield from source.header(self.markers, _NAME_LIMIT)
        if marker != _SEPARATOR:
            raise Malformed
        source.take(len(marker))
        if (yield from source.skip()) != "{":
            name, _ = yield from source.header(_NAME_ENDS, _NAME_LIMIT)
            _, end = yield from source.header(_FENCE_ENDS, _FENCE_LIMIT)
            if end != "{":
                raise Malformed
        name = name.strip()
        if not name:
            raise Malformed
        self.begin_call(name)
        yield from read_arguments(self)
        yield from source.skip("`")
