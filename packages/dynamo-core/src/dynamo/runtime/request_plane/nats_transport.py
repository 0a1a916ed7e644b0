"""Carries the bytes of one request plane connection over NATS, as an asyncio transport.

A connection is a pair of subjects that end in a channel name, which the asking side makes up. Each message is numbered:
NATS keeps the order but may lose messages, and then the connection is lost. With a secret each message carries a MAC,
because whoever may publish on the subjects could otherwise join in after the handshake.

::

    kind (1 byte) | number (8 bytes, little-endian) | MAC (16 bytes, if kind has the flag) | data
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dynamo.errors import CannotConnect, Disconnected, TransportError
from dynamo.runtime.nats_link import NatsLink
from dynamo.runtime.request_plane.connection import Connection

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = [
    "CHANNEL_BYTES",
    "CLAIM",
    "DATA",
    "DIAL",
    "Channel",
    "Channels",
    "Envelope",
    "NatsTransport",
    "Route",
    "channel_of",
    "is_status",
    "is_subject",
    "refuse",
]

logger = logging.getLogger(__name__)

DIAL = 0  # asking side, first message
DATA = 1
CLOSE = 2
REFUSE = 3  # not part of a connection, number 0: the reason as text
CLAIM = 4  # since protocol 1.1, not part of a connection: see `dynamo.runtime.request_plane.nats_claims`
#: Of the random name of a channel.
CHANNEL_BYTES = 16
_SEALED = 0x80

_HEADER = struct.Struct("<BQ")
_MAC_BYTES = 16
_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")


def is_subject(text: str) -> bool:
    """Whether `text` is a subject without wildcards, spaces and control characters."""
    return _SUBJECT.match(text) is not None


class Route(NamedTuple):
    """Where messages go, and where the peer answers."""

    target: str
    reply: str


class Envelope:
    """Packs and unpacks the messages of one channel; each direction has a key of its own."""

    def __init__(self, secret: bytes, channel: str, *, asking: bool) -> None:
        sides = (b"client", b"server") if asking else (b"server", b"client")
        self._out, self._in = (
            hmac.digest(secret, b"nats channel\0" + channel.encode() + side, "sha256") if secret else b""
            for side in sides
        )

    def seal(self, kind: int, number: int, data: bytes = b"") -> bytes:
        """One message."""
        if not self._out:
            return _HEADER.pack(kind, number) + data
        head = _HEADER.pack(kind | _SEALED, number)
        return head + hmac.digest(self._out, head + data, "sha256")[:_MAC_BYTES] + data

    def open(self, message: bytes) -> tuple[int, int, bytes] | None:
        """Kind, number and data; None for one that the peer did not send."""
        if len(message) < _HEADER.size:
            return None
        head, rest = message[: _HEADER.size], message[_HEADER.size :]
        kind, number = _HEADER.unpack(head)
        if bool(kind & _SEALED) != bool(self._in):
            return None
        if self._in:
            mac, rest = rest[:_MAC_BYTES], rest[_MAC_BYTES:]
            if not hmac.compare_digest(mac, hmac.digest(self._in, head + rest, "sha256")[:_MAC_BYTES]):
                return None
        return kind & ~_SEALED, number, rest


def refuse(link: NatsLink, envelope: Envelope, target: str, reason: str) -> None:
    """Tell a peer that there is no connection, and why."""
    link.publish(target, envelope.seal(REFUSE, 0, reason.encode()))


class Channel(Protocol):
    """What receives on one channel."""

    def receive(self, message: bytes) -> None:
        """One message, of anybody."""
        ...

    def nobody_listens(self) -> None:
        """The server says that nobody subscribes to the peer's subject."""
        ...

    def fail(self, error: TransportError) -> None:
        """The peer cannot be reached any more."""
        ...

    def press(self, high: bool) -> None:
        """Too much waits for the socket, or no longer."""
        ...


class Channels:
    """What receives by one subscription, by channel name."""

    def __init__(self) -> None:
        self.transports: dict[str, Channel] = {}

    def receive(self, message: Msg) -> bool:
        """Hand `message` to its transport; whether there is one."""
        transport = self.transports.get(channel_of(message))
        if transport is None:
            return False
        if is_status(message):
            transport.nobody_listens()
        else:
            transport.receive(message.data)
        return True

    def lost(self, reason: str) -> None:
        """NATS is away."""
        for transport in list(self.transports.values()):
            transport.fail(Disconnected(f"NATS was lost: {reason}"))

    def press(self, high: bool) -> None:
        """Too much waits for the socket, or no longer."""
        for transport in list(self.transports.values()):
            transport.press(high)


def channel_of(message: Msg) -> str:
    """The channel that a message belongs to."""
    return message.subject.rpartition(".")[2]


def is_status(message: Msg) -> bool:
    """Whether the server made this message: nobody subscribes to the subject that was published to."""
    return not message.data and message.headers is not None and "Status" in message.headers


class NatsTransport(asyncio.Transport):
    """What a `Connection` writes to; feeds it what the peer writes."""

    def __init__(
        self, link: NatsLink, channels: Channels, channel: str, connection: Connection, envelope: Envelope, route: Route
    ) -> None:
        super().__init__()
        self._link = link
        self._channels = channels
        self._channel = channel
        self._connection = connection
        self._envelope = envelope
        self._route = route
        self._sent = 0
        self._received = 0
        self._foreign = 0
        self._closed = False

    def open(self, *, dial: bool) -> None:
        """Begin; the asking side dials, for the serving one a dial has been received."""
        self._channels.transports[self._channel] = self
        self._connection.connection_made(self)
        if self._link.congested:
            self.press(True)
        if dial:
            self._post(DIAL)
        else:
            self._received = 1

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The peer's subject as its name."""
        return self._route.target if name == "peername" else default

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send in messages that the server takes."""
        view = memoryview(data)
        step = self._link.max_payload - _HEADER.size - _MAC_BYTES
        for start in range(0, len(view), step):
            self._post(DATA, bytes(view[start : start + step]))

    def close(self) -> None:
        """Tell the peer and forget the channel."""
        self._post(CLOSE)
        self._end()

    def abort(self) -> None:
        """The same: nothing is ever waited for."""
        self.close()

    def fail(self, error: TransportError) -> None:
        """The peer cannot be reached any more."""
        self._end()
        self._connection.close(error)

    def press(self, high: bool) -> None:
        """See `Channels.press`."""
        if high:
            self._connection.pause_writing()
        else:
            self._connection.resume_writing()

    def nobody_listens(self) -> None:
        """The server says that the peer's subscription is gone."""
        subject = self._route.target
        self.fail(Disconnected(f"{subject} is gone") if self._received else CannotConnect(f"nobody is at {subject}"))

    def receive(self, message: bytes) -> None:
        """One message on this channel."""
        opened = self._envelope.open(message)
        if opened is None:
            self._receive_foreign(message)
            return
        kind, number, data = opened
        if kind == REFUSE:
            self.fail(CannotConnect(f"{self._route.target} refused: {data[:200].decode(errors='replace')}"))
        elif number > self._received:
            self._connection.drop(Disconnected(f"{number - self._received} messages were lost on the way"))
        elif number == self._received:
            self._received += 1
            if kind == DATA:
                self._connection.data_received(data)
            elif kind == CLOSE:
                self.fail(Disconnected(f"{self._route.target} closed the connection"))
        # A lower number is a replay.

    def _receive_foreign(self, message: bytes) -> None:
        if not self._received and message[:1] in (bytes([REFUSE]), bytes([REFUSE | _SEALED])):
            self.fail(
                CannotConnect(
                    f"{self._route.target} has another plane secret than this process",
                    hint="set the same DYN_PLANE_SECRET or DYN_PLANE_SECRET_FILE for all processes",
                )
            )
            return
        self._foreign += 1
        if self._foreign == 1:
            logger.warning("ignoring messages to the channel with %s that it did not send", self._route.target)

    def _post(self, kind: int, data: bytes = b"") -> None:
        if not self._closed:
            self._link.publish(self._route.target, self._envelope.seal(kind, self._sent, data), self._route.reply)
            self._sent += 1

    def _end(self) -> None:
        self._closed = True
        self._channels.transports.pop(self._channel, None)
