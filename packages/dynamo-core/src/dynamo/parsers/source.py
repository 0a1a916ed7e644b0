"""Text that arrives in pieces, read by generators as if it were all there.

A parser is a generator that yields whenever it needs text that has not come yet, so that its code follows the grammar
of its format, and stops at a piece's end anywhere. :class:`~dynamo.parsers.stream.ToolCallStream` runs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

from dynamo.parsers.markers import Markers
from dynamo.parsers.scanner import JSON, Syntax, ValueScanner

__all__ = ["CALL_LIMIT", "BoundedText", "EndOfText", "Malformed", "Reading", "Source", "well_formed"]

#: Characters of one call that are kept; what goes beyond is read and dropped.
CALL_LIMIT = 1024 * 1024

T = TypeVar("T")
#: A generator that yields when it needs more text, and returns what it read.
Reading: TypeAlias = Generator[None, None, T]


class EndOfText(Exception):
    """The text ended within what is being read."""


class Malformed(Exception):
    """The text does not follow the format."""


class BoundedText:
    """Joins pieces up to a limit; pieces beyond it are dropped."""

    __slots__ = ("_left", "_pieces")

    def __init__(self, limit: int = CALL_LIMIT) -> None:
        self._pieces: list[str] = []
        self._left = limit

    def write(self, text: str) -> None:
        """Append `text`, or the beginning of it that fits."""
        if text and self._left:
            text = text[: self._left]
            self._left -= len(text)
            self._pieces.append(text)

    def text(self) -> str:
        """All of it."""
        return "".join(self._pieces)


class Source:
    """The text that has come and is not read yet.

    Methods that are generators raise :class:`EndOfText` when the text ends within what they read.
    """

    __slots__ = ("_position", "_record", "_text", "ended")

    def __init__(self) -> None:
        self._text = ""
        self._position = 0
        self._record: BoundedText | None = None
        self.ended = False
        """No text will come any more."""

    def push(self, text: str) -> None:
        """Append a piece."""
        self._text = self._text[self._position :] + text
        self._position = 0

    @property
    def exhausted(self) -> bool:
        """Whether all that has come is read."""
        return self._position == len(self._text)

    def record(self) -> None:
        """Keep what is read from here on, for :meth:`recorded`."""
        self._record = BoundedText()

    def recorded(self) -> str:
        """What was read since :meth:`record`; ends the recording."""
        record, self._record = self._record, None
        return record.text() if record is not None else ""

    def take(self, size: int) -> str:
        """Read `size` characters that have come."""
        begin, self._position = self._position, self._position + size
        text = self._text[begin : self._position]
        if self._record is not None:
            self._record.write(text)
        return text

    def ahead(self, ends: Markers) -> tuple[int, str | None]:
        """Size of the text before the next marker, and the marker.

        Without one, the size of what cannot be the beginning of a marker, and None.
        """
        match = ends.search(self._text, self._position)
        if match is not None:
            return match.start() - self._position, match[0]
        left = len(self._text) - self._position
        return (left if self.ended else left - ends.held(self._text, self._position)), None

    def until(self, ends: Markers) -> tuple[str, str | None]:
        """Read what is :meth:`ahead`, and the marker: ``(text before it, marker)``."""
        size, marker = self.ahead(ends)
        text = self.take(size)
        if marker is not None:
            self.take(len(marker))
        return text, marker

    def more(self) -> Reading[None]:
        """Wait for another piece."""
        if self.ended:
            raise EndOfText
        yield

    def peek(self) -> Reading[str]:
        """The next character, which stays unread."""
        while self.exhausted:
            yield from self.more()
        return self._text[self._position]

    def skip(self, also: str = "") -> Reading[str]:
        """Read white space and the characters of `also`; return the next character, which stays unread."""
        while True:
            character = yield from self.peek()
            if not character.isspace() and character not in also:
                return character
            self.take(1)

    def expect(self, character: str) -> Reading[None]:
        """Read white space and `character`.

        Raises:
            Malformed: another one comes.
        """
        if (yield from self.skip()) != character:
            raise Malformed
        self.take(1)

    def header(self, ends: Markers, limit: int) -> Reading[tuple[str, str]]:
        """Read up to a marker that must come: ``(text before it, marker)``. The marker stays unread.

        Raises:
            Malformed: more than `limit` characters come before it; so many are read.
        """
        read = ""
        while True:
            size, marker = self.ahead(ends)
            left = limit - len(read)
            read += self.take(min(size, left))
            if size > left:
                raise Malformed
            if marker is not None:
                return read, marker
            yield from self.more()

    def marker_here(self, texts: Markers) -> Reading[str | None]:
        """The marker that comes next, unread; None if something else does."""
        while True:
            yield from self.peek()
            size, marker = self.ahead(texts)
            if size or marker is not None:
                return marker if not size else None
            yield from self.more()

    def name(self, limit: int) -> Reading[str]:
        """Read letters, digits, ``_``, ``-`` and ``.``, at most `limit`."""
        read = ""
        while len(read) < limit:
            character = yield from self.peek()
            if not character.isalnum() and character not in "_-.":
                break
            read += self.take(1)
        return read

    def value(self, write: Callable[[str], None], syntax: Syntax = JSON) -> Reading[None]:
        """Read one value from here, and `write` its text as it comes.

        Raises:
            Malformed: a character comes that no value can hold; what came before it is written.
        """
        scanner = ValueScanner(syntax)
        while True:
            size = scanner.feed(self._text, self._position) - self._position
            if size:
                write(self.take(size))
            if scanner.broken:
                raise Malformed
            if scanner.done:
                return
            yield from self.more()

    def string(self) -> Reading[str]:
        """Read white space and a JSON string; return what it stands for.

        Raises:
            Malformed: something else comes, or an escape is wrong.
        """
        if (yield from self.skip()) != '"':
            raise Malformed
        raw = BoundedText()
        yield from self.value(raw.write)
        try:
            # Not strict: models write line breaks into strings.
            decoded = json.loads(raw.text(), strict=False)
        except ValueError as error:
            raise Malformed from error
        assert isinstance(decoded, str)
        return well_formed(decoded)


def well_formed(text: str) -> str:
    """`text` with halves of surrogate pairs joined, or replaced by U+FFFD: escapes can make what UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
