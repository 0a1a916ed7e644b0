"""A conversation of two request planes as recorded bytes, and what can be said of it without any code of the planes.

`tools.wire.record` writes transcripts, the tests in `tests/wire` play them. The framing is written out here once more:
a reader that shared the code it checks would change with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

__all__ = ["HEADER_BYTES", "KINDS", "Line", "Progress", "Side", "messages_of", "read_lines", "write_lines"]

Side = Literal["client", "server"]

HEADER_BYTES = 4
#: Kinds of messages by number, major version 1.
KINDS = ("HELLO", "READY", "REFUSE", "OPEN", "CANCEL", "CREDIT", "ITEMS", "END", "FAIL", "PING", "PONG", "GOAWAY")


class Line(msgspec.Struct, frozen=True):
    """One frame, in the order in which they travelled."""

    sender: Side
    says: str
    """What is in it, for people."""
    frame: str
    """Its bytes in hex, length included."""

    @classmethod
    def of(cls, sender: Side, frame: bytes) -> Line:
        """The line for one whole frame."""
        says = ", ".join(_title(message) for message in messages_of(frame))
        return cls(sender, says, frame.hex())

    @property
    def data(self) -> bytes:
        """The bytes."""
        return bytes.fromhex(self.frame)


def messages_of(frame: bytes) -> list[list[Any]]:
    """The messages in one whole frame."""
    messages: list[list[Any]] = msgspec.msgpack.decode(frame[HEADER_BYTES:])
    return messages


def _title(message: list[Any]) -> str:
    kind = KINDS[message[0]]
    if kind == "ITEMS":
        return f"{len(message[2])} ITEMS of {message[1]}"
    return f"{kind} {message[1]}" if len(message) > 1 and isinstance(message[1], int) else kind


def read_lines(path: Path) -> list[Line]:
    """A transcript."""
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


def write_lines(path: Path, lines: Iterable[msgspec.Struct]) -> None:
    """Write one JSON object a line."""
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


class Progress:
    """What one side has said so far, however it was cut into frames."""

    def __init__(self) -> None:
        self.items: dict[int, list[bytes]] = {}
        """By stream, what the server sent."""
        self.endings: dict[int, dict[str, Any] | None] = {}
        """By stream: None at an END, the error map of a FAIL."""
        self.credit: dict[int, int] = {}
        """By stream, what the client granted."""
        self.opened: dict[int, list[Any]] = {}
        """By stream: endpoint, payload, fields and window of the OPEN."""
        self.others: set[tuple[str, Any]] = set()
        self.pongs = 0

    def take(self, messages: Iterable[list[Any]]) -> None:
        """Add `messages`."""
        for number, *rest in messages:
            kind = KINDS[number]
            if kind == "ITEMS":
                self.items.setdefault(rest[0], []).extend(rest[1])
            elif kind in ("END", "FAIL"):
                self.endings[rest[0]] = rest[1] if kind == "FAIL" else None
            elif kind == "OPEN":
                self.opened[rest[0]] = rest[1:]
            elif kind == "CREDIT":
                self.credit[rest[0]] = self.credit.get(rest[0], 0) + rest[1]
            elif kind == "PONG":
                self.pongs += 1
            elif kind != "PING":
                self.others.add((kind, rest[0] if rest and isinstance(rest[0], int) else None))

    def covers(self, other: Progress) -> bool:
        """Whether all that `other` has been said here too."""
        return not any(self.missing(other))

    def missing(self, other: Progress) -> Iterator[str]:
        """What `other` has and this has not, for people."""
        for stream, items in other.items.items():
            if len(self.items.get(stream, ())) < len(items):
                yield f"items of {stream}: {len(self.items.get(stream, ()))} of {len(items)}"
        for stream, credit in other.credit.items():
            if self.credit.get(stream, 0) < credit:
                yield f"credit for {stream}: {self.credit.get(stream, 0)} of {credit}"
        yield from (f"the end of {stream}" for stream in other.endings.keys() - self.endings.keys())
        yield from (f"the opening of {stream}" for stream in other.opened.keys() - self.opened.keys())
        yield from (f"{kind} {stream or ''}" for kind, stream in other.others - self.others)
        if self.pongs < other.pongs:
            yield f"{self.pongs} of {other.pongs} PONG"
