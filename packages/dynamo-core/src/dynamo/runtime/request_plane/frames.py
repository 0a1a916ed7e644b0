"""Frames of the request planes: a 4-byte little-endian length, then a msgpack array of messages.

A message is an array whose first element is its kind (DESIGN 4.4 allows fixed arrays within a major version; maps
inside them may grow fields). One frame carries all messages of one event-loop pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from dynamo.errors import TransportError

__all__ = [
    "CANCEL",
    "CREDIT",
    "END",
    "FAIL",
    "GOAWAY",
    "HEADER_BYTES",
    "HELLO",
    "ITEMS",
    "ITEM_OVERHEAD_BYTES",
    "OPEN",
    "PING",
    "PONG",
    "PROTOCOL_VERSION",
    "READY",
    "REFUSE",
    "FrameReader",
    "Message",
    "encode_frames",
    "fits",
]

#: (major, minor). The same major always works together; the minor only adds. 1.1: claims over NATS.
PROTOCOL_VERSION = (1, 1)
HEADER_BYTES = 4
#: More than a frame adds to the one item in it: two arrays, the kind, a stream id, an array, a length.
ITEM_OVERHEAD_BYTES = 32

HELLO = 0  # both: [HELLO, {version, features, nonce, auth, mac}]
READY = 1  # server: [READY, {mac}]
REFUSE = 2  # server: [REFUSE, error map]
OPEN = 3  # client: [OPEN, stream id, endpoint, payload, {request_id, deadline_unix_seconds, trace}, window]
CANCEL = 4  # client: [CANCEL, stream id]
CREDIT = 5  # client: [CREDIT, stream id, number of items]
ITEMS = 6  # server: [ITEMS, stream id, [item, ...]]
END = 7  # server: [END, stream id]
FAIL = 8  # server: [FAIL, stream id, error map]
PING = 9  # both: [PING]
PONG = 10  # both: [PONG]
GOAWAY = 11  # server: [GOAWAY]: new streams are refused from now on

Message: TypeAlias = "tuple[Any, ...]"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode


def fits(message: Message, max_frame_bytes: int) -> bool:
    """Whether `message`, which is no batch of items, can be sent at all."""
    return len(_encode([message])) <= max_frame_bytes


def encode_frames(messages: list[Message], max_frame_bytes: int) -> bytes:
    """One frame, or several if one would be longer than `max_frame_bytes`.

    Raises:
        TransportError: a single message is longer, and is not a batch of items, or one item is.
    """
    body = _encode(messages)
    if len(body) <= max_frame_bytes:
        return len(body).to_bytes(HEADER_BYTES, "little") + body
    if len(messages) == 1:
        kind, *rest = messages[0]
        if kind != ITEMS or len(rest[1]) == 1:
            raise TransportError(f"message of {len(body)} bytes; the frame limit is {max_frame_bytes}")
        stream_id, items = rest
        middle = len(items) // 2
        messages = [(ITEMS, stream_id, items[:middle]), (ITEMS, stream_id, items[middle:])]
    half = len(messages) // 2
    return encode_frames(messages[:half], max_frame_bytes) + encode_frames(messages[half:], max_frame_bytes)


class FrameReader:
    """Cuts a byte stream into messages. Input is hostile: sizes are checked before anything is kept."""

    __slots__ = ("_buffer", "max_frame_bytes")

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """Messages that `data` completes.

        Raises:
            TransportError: a frame is too long, or not an array of messages.
        """
        buffer = self._buffer
        # Nearly always a read holds whole frames: then nothing is copied into the buffer.
        view = memoryview(data)
        if buffer:
            buffer += data
            view = memoryview(bytes(buffer)) if self._complete() else memoryview(b"")
            if not view:
                return
            buffer.clear()
        start, total = 0, len(view)
        while total - start >= HEADER_BYTES:
            length = self._length(view[start : start + HEADER_BYTES])
            end = start + HEADER_BYTES + length
            if end > total:
                break
            try:
                messages = _decode(view[start + HEADER_BYTES : end])
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                raise TransportError(f"malformed frame: {error}") from error
            yield from messages
            start = end
        if start < total:
            buffer += view[start:]
            if len(buffer) >= HEADER_BYTES:
                self._length(buffer[:HEADER_BYTES])

    def _complete(self) -> bool:
        buffer = self._buffer
        return len(buffer) >= HEADER_BYTES and len(buffer) >= HEADER_BYTES + self._length(buffer[:HEADER_BYTES])

    def _length(self, header: bytes | bytearray | memoryview) -> int:
        length = int.from_bytes(header, "little")
        if length > self.max_frame_bytes:
            raise TransportError(f"frame of {length} bytes; the limit is {self.max_frame_bytes}")
        return length
