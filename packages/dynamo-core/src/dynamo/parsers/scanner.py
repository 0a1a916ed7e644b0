"""Finds where a JSON value or a Python call ends while its text arrives in pieces.

The tool-call parsers stream arguments with it: whatever it has passed belongs to the value and can be sent. Each
character is looked at once. Only the structure is read (brackets, strings, escapes): ``{"a": 1,, "b"}`` passes, as
clients have to check arguments against their schema anyway, while a character that no value can hold ends it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["JSON", "MAX_DEPTH", "PYTHON", "Syntax", "ValueScanner"]

#: Deeper values are broken: JSON libraries recurse, and clients would fail on them.
MAX_DEPTH = 128


class Syntax(NamedTuple):
    """What opens, closes and quotes in a language."""

    closers: dict[str, str]
    """Opening bracket to closing bracket."""
    notable: re.Pattern[str]
    """A character outside of strings that needs a look: bracket, quote, or one that has no place in a value."""
    string_ends: dict[str, re.Pattern[str]]
    """Quote to the pattern of what is notable within a string: the quote and the backslash."""


JSON = Syntax({"{": "}", "[": "]"}, re.compile(r"[^\s\w.+\-:,]"), {'"': re.compile(r'["\\]')})
PYTHON = Syntax(
    {"{": "}", "[": "]", "(": ")"},
    re.compile(r"[\[\](){}'\"<>|`]"),
    {'"': re.compile(r'["\\]'), "'": re.compile(r"['\\]")},
)
_SCALAR = re.compile(r"[\w.+\-]*")


class ValueScanner:
    """Follows one value from its first character, which must not be white space.

    `done` is set with the last character of the value, `broken` at the first that cannot belong to it. A bare scalar
    (``12``, ``true``) is done at the first character behind it.
    """

    __slots__ = ("_escaped", "_stack", "_started", "_string", "_syntax", "broken", "done")

    def __init__(self, syntax: Syntax = JSON) -> None:
        self._syntax = syntax
        self._stack: list[str] = []
        self._string: re.Pattern[str] | None = None
        self._escaped = False
        self._started = False
        self.done = False
        self.broken = False

    def feed(self, text: str, start: int = 0) -> int:
        """The index in `text` behind the part of the value that lies in ``text[start:]``."""
        position, size = start, len(text)
        while position < size and not self.done and not self.broken:
            if self._string is not None:
                position = self._in_string(self._string, text, position)
            elif self._stack or not self._started:
                position = self._between(text, position)
            else:
                position = self._in_scalar(text, position)
        return position

    def _in_string(self, notable: re.Pattern[str], text: str, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        match = notable.search(text, position)
        if match is None:
            return len(text)
        if match[0] == "\\":
            self._escaped = True
        else:
            self._string = None
            self.done = not self._stack
        return match.end()

    def _between(self, text: str, position: int) -> int:
        match = self._syntax.notable.search(text, position)
        if not self._started:
            self._started = True
            if match is None or match.start() != position:
                self.broken = text[position] in ",:"  # otherwise a scalar
                return position
        if match is None:
            return len(text)
        character = match[0]
        closer = self._syntax.closers.get(character)
        if closer is not None:
            self._stack.append(closer)
            self.broken = len(self._stack) > MAX_DEPTH
        elif self._stack and character == self._stack[-1]:
            self._stack.pop()
            self.done = not self._stack
        else:
            self._string = self._syntax.string_ends.get(character)
            self.broken = self._string is None
        return match.start() if self.broken else match.end()

    def _in_scalar(self, text: str, position: int) -> int:
        match = _SCALAR.match(text, position)
        assert match is not None
        self.done = match.end() < len(text)
        return match.end()
