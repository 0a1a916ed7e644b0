"""What both ends of a connection share: framing, one write per event-loop pass, keep-alive, reasoned closing.

The bytes are carried by an asyncio transport: a socket's, or `dynamo.runtime.request_plane.nats_transport`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

from dynamo.errors import Disconnected, DynamoError, TransportError
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.request_plane.frames import PING, PONG, FrameReader, Message, encode_frames

__all__ = ["HANDSHAKE_FRAME_BYTES", "SILENT_INTERVALS", "Connection"]

logger = logging.getLogger(__name__)

#: Before the handshake is done a peer may not make us hold more than this.
HANDSHAKE_FRAME_BYTES = 4096
#: A peer that is silent for this many keep-alive intervals is lost. One interval may pass while a loaded machine does
#: not schedule it.
SILENT_INTERVALS = 4


class Connection(asyncio.Protocol):
    """One connection. Subclasses implement `opened`, `handle` and `lost`."""

    def __init__(self, options: PlaneOptions) -> None:
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.peer = "?"
        self.ready = False
        self.write_paused = False
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(HANDSHAKE_FRAME_BYTES)
        self._outbox: list[Message] = []
        self._flush_scheduled = False
        self.flushes = 0
        self._last_received = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def opened(self) -> None:
        """The transport is there, the handshake is not done."""

    def handle(self, message: list[Any]) -> None:
        """One message of the peer; may raise anything for a malformed one, which drops the peer."""

    def read_done(self) -> None:
        """All messages of one read have been handled."""

    def lost(self, error: DynamoError) -> None:
        """The connection is gone; called once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Transport callback."""
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name or "unix socket")
        self._timer = self.loop.call_later(self.options.connect_timeout_seconds, self._handshake_timeout)
        self.opened()

    def become_ready(self) -> None:
        """The handshake is done: allow whole frames and start the keep-alive."""
        self.ready = True
        self._reader.max_frame_bytes = self.options.max_frame_bytes
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.options.keepalive_seconds, self._keep_alive)

    def data_received(self, data: bytes) -> None:
        """Transport callback."""
        self._last_received = self.loop.time()
        try:
            for message in self._reader.feed(data):
                if self._closed:
                    return
                if message[0] == PING:
                    self.post((PONG,))
                elif message[0] != PONG:
                    self.handle(message)
            self.read_done()
        except DynamoError as error:
            self.drop(error)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            logger.debug("malformed message of %s", self.peer, exc_info=True)
            self.drop(TransportError(f"malformed message: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Transport callback."""
        self._finish(Disconnected(f"connection to {self.peer} was lost{f': {exc}' if exc else ''}"))

    def pause_writing(self) -> None:
        """Transport callback: its buffer is full."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Transport callback."""
        self.write_paused = False

    def post(self, message: Message) -> None:
        """Send `message` with everything else of this event-loop pass."""
        self._outbox.append(message)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what has been posted."""
        self._flush_scheduled = False
        self.flushes += 1
        if self._transport is None or self._closed or not self._outbox:
            return
        outbox, self._outbox = self._outbox, []
        try:
            self._transport.write(encode_frames(outbox, self.options.max_frame_bytes))
        except TransportError as error:
            self.drop(error)

    def drop(self, error: DynamoError) -> None:
        """Close because of `error`, which is logged: the peer misbehaved or is lost."""
        if not self._closed:
            logger.warning("dropping connection with %s: %s", self.peer, error.message)
        self.close(error)

    def close(self, error: DynamoError | None = None) -> None:
        """Close; what is posted is written first."""
        self.flush()
        if self._transport is not None:
            self._transport.close()
        self._finish(error or Disconnected(f"connection to {self.peer} was closed"))

    def _finish(self, error: DynamoError) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.lost(error)

    def _handshake_timeout(self) -> None:
        self.drop(TransportError(f"no handshake within {self.options.connect_timeout_seconds:g} s"))

    def _keep_alive(self) -> None:
        silent = self.loop.time() - self._last_received
        limit = SILENT_INTERVALS * self.options.keepalive_seconds
        if silent > limit:
            if self._transport is not None:
                # abort: a close would wait for a peer that does not read.
                self._transport.abort()
            self.drop(Disconnected(f"{self.peer} was silent for {silent:.1f} s"))
            return
        self.post((PING,))
        self._timer = self.loop.call_later(self.options.keepalive_seconds, self._keep_alive)
