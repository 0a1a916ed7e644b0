"""The asking end of a connection: one per peer, streams multiplexed, credit granted as sinks take items."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from dynamo.errors import (
    CannotConnect,
    Disconnected,
    DynamoError,
    EngineError,
    RequestTooLarge,
    ResponseTimeout,
    TransportError,
    error_from_wire,
)
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
    fits,
)
from dynamo.runtime.request_plane.handshake import ClientHandshake

__all__ = ["WINDOW_ITEMS", "ClientConnection"]

logger = logging.getLogger(__name__)

#: Items that may be under way to a sink. At 200 tokens/s this is more than a second of one stream.
WINDOW_ITEMS = 256


class _ClientStream:
    """Implements `dynamo.protocols.planes.PlaneStream`."""

    __slots__ = ("_arrived", "_connection", "_ended", "_paused", "_request_id", "_sink", "_taken", "deadline", "id")

    def __init__(self, connection: ClientConnection, stream_id: int, sink: ResponseSink, request_id: str) -> None:
        self._connection = connection
        self.id = stream_id
        self._sink = sink
        self._request_id = request_id
        self._ended = False
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
        self._tell(self._sink.on_items, items)
        if self._taken >= WINDOW_ITEMS // 2 and not self._paused:
            self._grant()

    def end(self, error: DynamoError | None) -> None:
        """Hand over what is left and tell the sink, once, how the stream ended."""
        self.deliver()
        if self._ended:
            return
        if error is None:
            self._tell(self._sink.on_end)
        else:
            self._ended = True
            self._tell(self._sink.on_error, error)

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        """Call the sink. If it raises its stream ends, and it alone: the caller has those of others to serve."""
        try:
            call(*arguments)
        except Exception:
            request_id = self._request_id
            logger.exception("the reader of request %s failed", request_id, extra={"request_id": request_id})
            self._connection.give_up(self.id)
            self.end(EngineError("internal error; the server's log has the details"))

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
        stream = _ClientStream(self, self._next_id, sink, context.request_id)
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
        message = (OPEN, stream.id, endpoint, payload, fields, WINDOW_ITEMS)
        limit = self.options.max_frame_bytes
        # Encoding it once more is for the few that may be too long.
        if len(payload) > limit // 2 and not fits(message, limit):
            error = RequestTooLarge(f"a request of {len(payload)} bytes; the limit between processes is {limit}")
            self.loop.call_soon(self._end, stream.id, error)  # the caller has no stream yet
            return stream
        self._send(message)
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
            self._end(message[1])
        elif kind == FAIL:
            self._end(message[1], error_from_wire(message[2], origin=self.address))
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
            self._end(stream_id, error)

    def give_up(self, stream_id: int) -> None:
        """Cancel a stream, and drop what still comes of it."""
        self.send_for(stream_id, (CANCEL, stream_id))
        self._forget(stream_id)

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

    def _forget(self, stream_id: int) -> _ClientStream | None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None and stream.deadline is not None:
            stream.deadline.cancel()
        return stream

    def _end(self, stream_id: int, error: DynamoError | None = None) -> None:
        stream = self._forget(stream_id)
        if stream is not None:
            stream.end(error)

    def _expire(self, stream_id: int) -> None:
        self.send_for(stream_id, (CANCEL, stream_id))
        self._end(stream_id, ResponseTimeout("the request's deadline has passed"))
