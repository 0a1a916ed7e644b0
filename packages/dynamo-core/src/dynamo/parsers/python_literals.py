"""Python literals to JSON text. For models that write calls, or values, as Python does.

Not `ast.literal_eval`: its trees take 100 times the memory of the text, deep ones can end the process, and models mix
in JSON's ``true`` and ``null``. The time is linear; the depth is bounded by whoever found the end of the text
(:class:`~dynamo.parsers.scanner.ValueScanner`) and checked again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from dynamo.parsers.scanner import MAX_DEPTH
from dynamo.parsers.source import Malformed, well_formed

__all__ = ["json_of_keywords", "json_of_literal", "json_text"]

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[^\W\d]\w*")
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?\Z", re.ASCII)
_STRINGS = {
    '"': re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL),
    "'": re.compile(r"'([^'\\]*(?:\\.[^'\\]*)*)'", re.DOTALL),
}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
_SIMPLE_ESCAPES = {
    "\n": "", "\\": "\\", "'": "'", '"': '"',
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}


def json_text(text: str) -> str:
    """`text` as a JSON string, with quotes."""
    return json.dumps(text, ensure_ascii=False)


def json_of_literal(text: str) -> str:
    """JSON for one Python literal: ``{'a': (1, None)}`` is ``{"a": [1, null]}``.

    Raises:
        Malformed: it is none, or has no JSON (sets, complex numbers).
    """
    reader = _LiteralReader(text)
    value = reader.value(0)
    reader.end()
    return value


def json_of_keywords(text: str) -> str:
    """JSON for keyword arguments: ``city="Oslo", days=3`` is ``{"city": "Oslo", "days": 3}``.

    Raises:
        Malformed: it is not that.
    """
    reader = _LiteralReader(text)
    members = reader.members("", "=", reader.keyword, 0)
    reader.end()
    return members


class _LiteralReader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def end(self) -> None:
        """Refuse anything behind the literal."""
        if self._next():
            raise Malformed

    def keyword(self) -> str:
        """A keyword's name as a JSON string."""
        match = _NAME.match(self._text, self._position)
        if match is None:
            raise Malformed
        self._position = match.end()
        return json_text(match[0])

    def value(self, depth: int) -> str:
        """JSON of the literal that comes next."""
        if depth > MAX_DEPTH:
            raise Malformed
        character = self._next()
        if character and character in "\"'":
            return json_text(self._string())
        if character and character in "[(":
            self._position += 1
            return self._items("]" if character == "[" else ")", depth + 1)
        if character == "{":
            self._position += 1
            return self.members("}", ":", self._key, depth + 1)
        return self._scalar()

    def members(self, closer: str, separator: str, read_key: Callable[[], str], depth: int) -> str:
        """JSON object of ``key separator value`` up to `closer` (empty: up to the end)."""
        members: list[str] = []
        while not self._closed(closer, first=not members):
            key = read_key()
            if self._next() != separator:
                raise Malformed
            self._position += 1
            members.append(f"{key}: {self.value(depth)}")
        return "{" + ", ".join(members) + "}"

    def _items(self, closer: str, depth: int) -> str:
        items: list[str] = []
        while not self._closed(closer, first=not items):
            items.append(self.value(depth))
        return "[" + ", ".join(items) + "]"

    def _closed(self, closer: str, *, first: bool) -> bool:
        """Read the comma before another item, or the closer; return whether it was the closer."""
        character = self._next()
        if not first and character == ",":
            self._position += 1
            character = self._next()
        elif not first and character != closer:
            raise Malformed
        if character == closer:
            self._position += len(closer)
            return True
        return False

    def _next(self) -> str:
        match = _SPACE.match(self._text, self._position)
        assert match is not None
        self._position = match.end()
        return self._text[self._position : self._position + 1]

    def _key(self) -> str:
        if self._next() in ('"', "'"):
            return json_text(self._string())
        return json_text(self._scalar())

    def _string(self) -> str:
        """Strings that stand side by side are one, as in Python."""
        parts = []
        while (quote := self._next()) in _STRINGS:
            match = _STRINGS[quote].match(self._text, self._position)
            if match is None:
                raise Malformed
            self._position = match.end()
            parts.append(_ESCAPE.sub(_unescaped, match[1]))
        return well_formed("".join(parts))

    def _scalar(self) -> str:
        match = _NAME.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
            constant = _CONSTANTS.get(match[0])
            if constant is None:
                raise Malformed
            return constant
        match = _NUMBER.match(self._text, self._position)
        if match is None:
            raise Malformed
        self._position = match.end()
        return _json_number(match[0])


def _json_number(text: str) -> str:
    plain = text.replace("_", "").removeprefix("+")
    if _JSON_NUMBER.match(plain):
        return plain
    try:
        number = float(plain)
    except ValueError as error:
        raise Malformed from error
    if not math.isfinite(number) or "." not in plain:
        raise Malformed
    return repr(number)


def _unescaped(match: re.Match[str]) -> str:
    escape = match[1]
    simple = _SIMPLE_ESCAPES.get(escape)
    if simple is not None:
        return simple
    if escape[0] in "01234567":
        return chr(int(escape, 8))
    if len(escape) > 1:
        code = int(escape[1:], 16)
        if code > 0x10FFFF:
            raise Malformed
        return chr(code)
    return match[0]
