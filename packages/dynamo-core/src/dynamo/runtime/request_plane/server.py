"""The serving end of a connection: opens streams, hands them to handlers, sends their items under credit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dynamo.errors import CannotConnect, Draining, DynamoError, EngineError, InvalidRequest, Overloaded, TransportError
from dynamo.protocols.planes import Handler, PlaneOptions
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.connection import Connection
from dynamo.runtime.request_plane.frames import (
    CANCEL,
    CREDIT,
    END,
    FAIL,
    GOAWAY,
    HELLO,
    ITEM_OVERHEAD_BYTES,
    ITEMS,
    OPEN,
    READY,
    REFUSE,
)
from dynamo.runtime.request_plane.handshake import ServerHandshake

__all__ = ["BACKLOG_LIMIT_ITEMS", "ServerConnection", "ServerHost"]

logger = logging.getLogger(__name__)

#: Items that one stream may hold back while the asking side grants no credit. At one token an item this is more than
#: any answer; a handler that goes on beyond it is stopped.
BACKLOG_LIMIT_ITEMS = 65536


class ServerHost:
    """What the connections of one serving process share; most of `dynamo.protocols.planes.PlaneServer`."""

    def __init__(self, options: PlaneOptions) -> None:
        self.options = options
        self.handlers: dict[str, Handler] = {}
        """Endpoint to handler."""
        self.draining = False
        """Whether new streams are refused."""
        self.connections: set[ServerConnection] = set()
        """Open connections; a connection adds and removes itself."""

    def add_handler(self, endpoint: str, handler: Handler) -> None:
        """Serve `endpoint` with `handler`."""
        self.handlers[endpoint] = handler

    @property
    def open_streams(self) -> int:
        """Streams that have not ended, over all connections."""
        return sum(len(connection.streams) for connection in self.connections)

    def stop_accepting(self) -> None:
        """Refuse new streams from now on."""
        self.draining = True
        for connection in self.connections:
            connection.go_away()

    async def close(self) -> None:
        """Drop all connections."""
        for connection in list(self.connections):
            connection.close()


class _ServerStream:
    """Implements `dynamo.protocols.planes.StreamWriter`."""

    __slots__ = (
        "_backlog",
        "_batch",
        "_batch_flush",
        "_closing",
        "_connection",
        "_credit",
        "_longest_item",
        "_waiting",
        "context",
        "id",
    )

    def __init__(self, connection: ServerConnection, stream_id: int, credit: int, context: Context) -> None:
        self._connection = connection
        self.id = stream_id
        self._credit = credit
        self._longest_item = connection.options.max_frame_bytes - ITEM_OVERHEAD_BYTES
        self.context = context
        self._backlog: list[bytes] = []
        self._batch: list[bytes] = []
        self._batch_flush = -1
        self._closing: tuple[Any, ...] | None = None
        self._waiting: list[Callable[[], None]] = []

    @property
    def writable(self) -> bool:
        return self._credit > 0 and not self._connection.write_paused

    def send(self, item: bytes) -> None:
        if self._closing is not None:
            return
        if len(item) > self._longest_item:
            self._refuse(item)
            return
        if self._credit <= 0:
            if self.context.cancelled:
                return
            self._backlog.append(item)
            if len(self._backlog) > BACKLOG_LIMIT_ITEMS:
                self._backlog.clear()
                self.fail(
                    Overloaded(f"request {self.context.request_id}: the reader is {BACKLOG_LIMIT_ITEMS} items behind")
                )
                self.context.cancel()
            return
        self._credit -= 1
        connection = self._connection
        if self._batch_flush == connection.flushes:
            # The batch of this pass is still in the outbox: grow it.
            self._batch.append(item)
        else:
            self._batch = [item]
            self._batch_flush = connection.flushes
            connection.post((ITEMS, self.id, self._batch))

    def end(self) -> None:
        self._close((END, self.id))

    def fail(self, error: DynamoError) -> None:
        self._close((FAIL, self.id, error.to_wire()))

    def on_writable(self, callback: Callable[[], None]) -> None:
        if self.writable or self._closing is not None:
            callback()
        else:
            self._waiting.append(callback)

    def grant(self, items: int) -> None:
        """The asking side takes `items` more."""
        self._credit += items
        if self._backlog:
            backlog, self._backlog = self._backlog[: self._credit], self._backlog[self._credit :]
            self._credit -= len(backlog)
            self._connection.post((ITEMS, self.id, backlog))
            if self._closing is not None and not self._backlog:
                self._connection.finish_stream(self, self._closing)
        self.notify()

    def notify(self) -> None:
        """Wake who waits for `writable`."""
        if self.writable or self._closing is not None:
            waiting, self._waiting = self._waiting, []
            for callback in waiting:
                try:
                    callback()
                except Exception:
                    logger.exception("a handler failed", extra={"request_id": self.context.request_id})
                    self.crash()

    def cancel(self) -> None:
        """The asking side takes nothing more; what was held back for it goes, or the stream would never end."""
        self._backlog.clear()
        self.context.cancel()
        if self._closing is not None:
            self._connection.finish_stream(self, self._closing)

    def abandon(self) -> None:
        """The connection is gone."""
        self._closing = self._closing or (END, self.id)
        self.context.cancel()
        self.notify()

    def crash(self) -> None:
        """The handler raised, which the log has: its stream fails, and no other."""
        self.fail(EngineError("internal error; the worker's log has the details"))
        self.context.cancel()

    def _refuse(self, item: bytes) -> None:
        request_id = self.context.request_id
        # Not a TransportError: another worker would send as much.
        error = EngineError(
            f"the answer has an item of {len(item)} bytes; the limit between processes is {self._longest_item}"
        )
        logger.error("request %s: %s", request_id, error.message, extra={"request_id": request_id})
        self.fail(error)
        self.context.cancel()

    def _close(self, message: tuple[Any, ...]) -> None:
        if self._closing is not None:
            return
        self._closing = message
        if not self._backlog:
            self._connection.finish_stream(self, message)
        self.notify()


class ServerConnection(Connection):
    """One client of this process."""

    def __init__(self, host: ServerHost) -> None:
        super().__init__(host.options)
        self._host = host
        self._handshake = ServerHandshake(host.options.secret)
        self.streams: dict[int, _ServerStream] = {}

    def opened(self) -> None:
        """Greet."""
        self._host.connections.add(self)
        self.post((HELLO, self._handshake.hello()))

    def handle(self, message: list[Any]) -> None:
        """Dispatch one message of the client."""
        kind = message[0]
        if not self.ready:
            self._greet(message)
        elif kind == OPEN:
            self._open(*message[1:6])
        elif kind == CREDIT:
            stream = self.streams.get(message[1])
            if stream is not None:
                stream.grant(_positive(message[2]))
        elif kind == CANCEL:
            stream = self.streams.get(message[1])
            if stream is not None:
                stream.cancel()
        # Kinds of a later minor version are ignored.

    def lost(self, error: DynamoError) -> None:  # noqa: ARG002
        """Cancel what the client had asked for."""
        self._host.connections.discard(self)
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.abandon()

    def resume_writing(self) -> None:
        """Transport callback."""
        super().resume_writing()
        for stream in list(self.streams.values()):
            stream.notify()

    def go_away(self) -> None:
        """Tell the client that new streams will be refused."""
        self.post((GOAWAY,))

    def finish_stream(self, stream: _ServerStream, message: tuple[Any, ...]) -> None:
        """Send the last message of a stream and forget it."""
        if self.streams.pop(stream.id, None) is not None:
            self.post(message)

    def _greet(self, message: list[Any]) -> None:
        if message[0] != HELLO or not isinstance(message[1], dict):
            raise TransportError("the peer did not start with a handshake")
        try:
            answer = self._handshake.answer(message[1])
        except CannotConnect as error:
            self.post((REFUSE, error.to_wire()))
            raise
        self.become_ready()
        self.post((READY, answer))

    def _open(self, stream_id: int, endpoint: str, payload: bytes, fields: dict[str, Any], window: int) -> None:
        if not isinstance(stream_id, int) or not isinstance(payload, bytes) or stream_id in self.streams:
            raise TransportError("malformed or repeated OPEN")
        deadline = fields.get("deadline_unix_seconds")
        trace = fields.get("trace")
        context = Context(
            str(fields["request_id"]),
            deadline_unix_seconds=deadline if isinstance(deadline, (int, float)) else None,
            trace=trace if isinstance(trace, dict) else None,
        )
        stream = self.streams[stream_id] = _ServerStream(self, stream_id, _positive(window), context)
        refusal = self._refusal(endpoint)
        if refusal is not None:
            stream.fail(refusal)
            return
        try:
            self._host.handlers[endpoint](payload, context, stream)
        except DynamoError as error:
            stream.fail(error)
        except Exception:
            logger.exception(
                "handler of %s failed on request %s",
                endpoint,
                context.request_id,
                extra={"request_id": context.request_id},
            )
            stream.crash()

    def _refusal(self, endpoint: str) -> DynamoError | None:
        if self._host.draining:
            return Draining("this worker is draining", retry_after_seconds=1)
        if endpoint not in self._host.handlers:
            return InvalidRequest(f"this process does not serve {endpoint!r}")
        if len(self.streams) > self.options.max_streams:
            return Overloaded(f"{self.options.max_streams} streams are open on this connection", retry_after_seconds=1)
        return None


def _positive(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= 1 << 30:
        raise TransportError(f"credit {value!r} is not a positive number")
    return value
