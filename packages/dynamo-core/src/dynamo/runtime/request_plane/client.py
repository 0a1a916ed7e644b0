"""The asking end of a connection: one per peer, streams multiplexed, credit granted as sinks take items."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from dynamo.errors import CannotConnect, Disconnected, DynamoError, ResponseTimeout, TransportError, error_from_wire
from dynamo.protocols.context import RequestContext
from dynamo.protocols.planes import PlaneOptions, ResponseSink
from dynamo.runtime.request_plane.connection import Connection
from dynamo.runtime.request_plane.frames import (
    CANCEL,
    CREDIT,
    END,
    FAIL,
    GOAWAY,
    HELLO,
    ITEMS,
    OPEN,
    READY,
    REFUSE,
    Message,
)
from dynamo.runtime.request_plane.handshake import ClientHandshake

__all__ = ["WINDOW_ITEMS", "ClientConnection"]

logger = logging.getLogger(__name__)

#: Items that may be under way to a sink. At 200 tokens/s this is more than a second of one stream.
WINDOW_ITEMS = 256


class _ClientStream:
    """Implements `dynamo.protocols.planes.PlaneStream`."""

    __slots__ = ("_arrived", "_connection", "_paused", "_taken", "deadline", "id", "sink")

    def __init__(self, connection: ClientConnection, stream_id: int, sink: ResponseSink) -> None:
        self._connection = connection
        self.id = stream_id
        self.sink = sink
        self.deadline: asyncio.TimerHandle | None = None
        self._arrived: list[bytes] = []
        self._taken = 0
        self._paused = False

    def cancel(self) -> None:
        self._connection.send_for(self.id, (CANCEL, self.id))

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._grant()

    def gather(self, items: list[bytes]) -> bool:
        """Keep `items` until all that has arrived is read; whether they are the first."""
        first = not self._arrived
        self._arrived += items
        return first

    def deliver(self) -> None:
        """Hand what was gathered to the sink and grant credit for half a window at a time."""
        items, self._arrived = self._arrived, []
        if not items:
            return
        self._taken += len(items)
        self.sink.on_items(items)
        if self._taken >= WINDOW_ITEMS // 2 and not self._paused:
            self._grant()

    def _grant(self) -> None:
        if self._taken:
            self._connection.send_for(self.id, (CREDIT, self.id, self._taken))
            self._taken = 0


class ClientConnection(Connection):
    """This process's connection to one worker; usable at once, messages wait for the handshake."""

    def __init__(self, options: PlaneOptions, address: str) -> None:
        super().__init__(options)
        self.address = address
        self.peer = address
        self.going_away = False
        self.alive = True
        self._handshake = ClientHandshake(options.secret)
        self._streams: dict[int, _ClientStream] = {}
        self._with_items: list[_ClientStream] = []
        self._next_id = 1
        self._early: list[Message] = []

    def open_stream(self, endpoint: str, payload: bytes, sink: ResponseSink, context: RequestContext) -> _ClientStream:
        """Ask the peer to serve one request."""
        stream = _ClientStream(self, self._next_id, sink)
        self._next_id += 1
        self._streams[stream.id] = stream
        fields: dict[str, Any] = {"request_id": context.request_id}
        if context.trace:
            fields["trace"] = dict(context.trace)
        if context.deadline_unix_seconds is not None:
            fields["deadline_unix_seconds"] = context.deadline_unix_seconds
            # The clock of a deadline is the caller's: the wire carries wall time, the timer runs on the loop's.
            remaining = max(0.0, context.deadline_unix_seconds - time.time())
            stream.deadline = self.loop.call_later(remaining, self._expire, stream.id)
        self._send((OPEN, stream.id, endpoint, payload, fields, WINDOW_ITEMS))
        context.on_cancel(stream.cancel)
        return stream

    def send_for(self, stream_id: int, message: Message) -> None:
        """Send `message` if the stream is still open."""
        if stream_id in self._streams:
            self._send(message)

    def handle(self, message: list[Any]) -> None:
        """Dispatch one message of the server."""
        kind = message[0]
        if kind == ITEMS:
            stream = self._streams.get(message[1])
            if stream is not None and stream.gather(message[2]):
                self._with_items.append(stream)
        elif kind == END:
            stream = self._take(message[1])
            if stream is not None:
                stream.sink.on_end()
        elif kind == FAIL:
            stream = self._take(message[1])
            if stream is not None:
                stream.sink.on_error(error_from_wire(message[2], origin=self.address))
        elif kind == GOAWAY:
            self.going_away = True
        elif not self.ready:
            self._greet(message)

    def read_done(self) -> None:
        """Deliver once per stream what came in many frames: a sink that fell behind catches up in one call."""
        streams, self._with_items = self._with_items, []
        for stream in streams:
            stream.deliver()

    def lost(self, error: DynamoError) -> None:
        """Every open stream fails: with CannotConnect when nothing can have been executed, else Disconnected."""
        self.alive = False
        if not self.ready and not isinstance(error, CannotConnect):
            error = CannotConnect(f"cannot connect to {self.address}: {error.message}")
        elif self.ready and not isinstance(error, Disconnected):
            error = Disconnected(f"connection to {self.address} was lost: {error.message}")
        for stream_id in list(self._streams):
            stream = self._take(stream_id)
            if stream is not None:
                stream.sink.on_error(error)

    def _greet(self, message: list[Any]) -> None:
        kind, fields = message[0], message[1]
        if kind == HELLO:
            self.post((HELLO, self._handshake.answer(fields)))
        elif kind == READY:
            self._handshake.finish(fields)
            self.become_ready()
            for early in self._early:
                self.post(early)
            self._early.clear()
        elif kind == REFUSE:
            refusal = error_from_wire(fields, origin=self.address)
            raise CannotConnect(f"{self.address} refused the connection: {refusal.message}", hint=refusal.hint)
        else:
            raise TransportError(f"unexpected message {kind!r} in the handshake")

    def _send(self, message: Message) -> None:
        if self.ready:
            self.post(message)
        else:
            self._early.append(message)

    def _take(self, stream_id: int) -> _ClientStream | None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            if stream.deadline is not None:
                stream.deadline.cancel()
            stream.deliver()
        return stream

    def _expire(self, stream_id: int) -> None:
        self.send_for(stream_id, (CANCEL, stream_id))
        stream = self._take(stream_id)
        if stream is not None:
            stream.sink.on_error(ResponseTimeout("the request's deadline has passed"))
