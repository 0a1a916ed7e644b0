"""What all tool-call parsers share: the text around calls, numbering and naming of calls, and what is held back.

Rules, the same for every format:

- Text outside of calls is content, verbatim. White space alone between calls, before the first or behind the last one
  is dropped; an answer without calls keeps it.
- Markers never reach the content; one that is out of place is dropped.
- A call counts once its function is named and its arguments begin (or it ends without any). Until then its text is
  held, at most `CALL_LIMIT` characters. What turns out to be no call becomes content, without markers.
- From there on arguments are sent as they come. If they break off (the answer was cut, or the syntax is wrong) the call
  stays as far as it came: the client sees arguments that are no JSON. The rest up to the next marker is dropped.
- Arguments beyond `CALL_LIMIT` characters are read and dropped, so that they are no JSON either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from dynamo.parsers.markers import Markers
from dynamo.parsers.source import CALL_LIMIT, EndOfText, Malformed, Reading, Source
from dynamo.protocols.parsing import ParsedDelta, ToolCallDelta, ToolCallOptions

__all__ = ["ToolCallStream"]

#: White space held back until it is known whether a call follows.
_BLANK_LIMIT = 4096


class ToolCallStream(ABC):
    """Base of the tool-call parsers. A subclass names its markers and reads what follows one.

    Attributes:
        tool_markers: what begins a call, or a section of calls.
        markers: every marker of the format.
    """

    needs_special_tokens: ClassVar[bool] = True
    parses_reasoning: ClassVar[bool] = False
    tool_markers: ClassVar[tuple[str, ...]] = ()
    markers: ClassVar[Markers]

    def __init__(self, options: ToolCallOptions) -> None:
        self.options = options
        self.source = Source()
        self.calls = 0
        """Calls begun so far."""
        self._content: list[str] = []
        self._deltas: list[ToolCallDelta] = []
        self._argument_room = 0
        self._blank = ""
        self._only_blank = True
        self._in_content = False
        self._routine = self._run()
        next(self._routine)

    def feed(self, text: str) -> ParsedDelta:
        """See `dynamo.protocols.parsing.ToolCallParser`."""
        # Nearly all text takes this way: nothing is held, and no marker begins here.
        if self._in_content and self.markers.absent(text):
            return ParsedDelta(text)
        self._in_content = False
        self.source.push(text)
        next(self._routine)
        return self._take()

    def finish(self) -> ParsedDelta:
        """See `dynamo.protocols.parsing.ToolCallParser`."""
        self.source.ended = True
        next(self._routine, None)
        return self._take()

    def _take(self) -> ParsedDelta:
        delta = ParsedDelta("".join(self._content), "", self._deltas)
        self._content = []
        self._deltas = []
        return delta

    def _run(self) -> Reading[None]:
        try:
            yield from self.beginning()
            while True:
                marker = yield from self.content()
                if marker in self.tool_markers:
                    self._only_blank = True
                    yield from self.block(marker)
        except EndOfText:
            if not self.calls:
                self._content.append(self._blank)

    # For subclasses

    def beginning(self) -> Reading[None]:
        """What an answer may begin with, for formats whose calls need no marker."""
        yield from ()

    @abstractmethod
    def block(self, marker: str) -> Reading[None]:
        """Read what follows one of `tool_markers`."""

    def content(self) -> Reading[str]:
        """Read content up to and including a marker; return the marker."""
        source = self.source
        while True:
            text, marker = source.until(self.markers)
            self.write_content(text)
            if marker is not None:
                return marker
            self._in_content = source.exhausted and not self._only_blank
            yield from source.more()

    def attempt(self, call: Reading[None]) -> Reading[bool]:
        """Run `call`, which reads one call; if it is none, its text becomes content. Return whether it went well."""
        source = self.source
        before = self.calls
        source.record()
        try:
            yield from call
        except Malformed:
            self.write_content(self.markers.without(source.recorded()))
            if self.calls > before:
                yield from self.skip_to_marker()
            return False
        except EndOfText:
            self.write_content(self.markers.without(source.recorded()))
            raise
        source.recorded()
        return True

    def write_content(self, text: str) -> None:
        """Add content."""
        if self._only_blank:
            text = self._blank + text
            if not text or (text.isspace() and len(text) <= _BLANK_LIMIT):
                self._blank = text
                return
            self._blank = ""
            self._only_blank = False
        if text:
            self._content.append(text)

    def begin_call(self, name: str, call_id: str | None = None) -> None:
        """A call of `name`; its arguments follow."""
        self.source.recorded()
        self._blank = ""
        self._only_blank = True
        self._argument_room = CALL_LIMIT
        self._deltas.append(ToolCallDelta(self.calls, call_id or self.options.make_id(), name))
        self.calls += 1

    def write_arguments(self, text: str) -> None:
        """Add to the arguments of the call that was begun last."""
        text = text[: self._argument_room]
        self._argument_room -= len(text)
        if not text:
            return
        index = self.calls - 1
        if self._deltas and self._deltas[-1].index == index:
            self._deltas[-1].arguments += text
        else:
            self._deltas.append(ToolCallDelta(index, arguments=text))

    def skip_to_marker(self) -> Reading[str]:
        """Drop what comes before the next marker, which stays unread."""
        while True:
            size, marker = self.source.ahead(self.markers)
            self.source.take(size)
            if marker is not None:
                return marker
            yield from self.source.more()

    def leading_space(self) -> Reading[str]:
        """Read white space, which is content unless a call follows; return the next character, which stays unread."""
        while True:
            character = yield from self.source.peek()
            if not character.isspace():
                return character
            self.write_content(self.source.take(1))
