"""The request plane: how a stream of responses gets from the instance that makes it to the process that asked.

The hot path is callbacks, not async iterators: a frame that carries one output for each of 64 streams costs 64 plain
calls in place of 64 queue operations and task switches. `dynamo.runtime.client` has the iterator form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, TypeAlias

from dynamo.errors import DynamoError
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord

__all__ = ["Handler", "PlaneServer", "PlaneStream", "RequestPlane", "ResponseSink"]

#: Serves one request: payload (msgpack bytes) and context in, msgpack-able items out.
Handler: TypeAlias = Callable[[bytes, RequestContext], AsyncIterator[Any]]


class ResponseSink(Protocol):
    """Receives one stream. Exactly one of `on_end` and `on_error` is called, last."""

    def on_items(self, items: list[bytes]) -> None:
        """New items of the stream, each msgpack-encoded, in order. Must not block or raise."""
        ...

    def on_end(self) -> None:
        """The handler returned."""
        ...

    def on_error(self, error: DynamoError) -> None:
        """The handler raised, or the connection was lost."""
        ...


class PlaneStream(Protocol):
    """The asking side of one open stream."""

    def cancel(self) -> None:
        """Tell the instance to stop; the sink still gets its `on_end` or `on_error`. Idempotent."""
        ...

    def pause(self) -> None:
        """Stop granting credit: the instance is held back once its window is used up."""
        ...

    def resume(self) -> None:
        """Grant credit again."""
        ...


class PlaneServer(Protocol):
    """The serving side in one process."""

    @property
    def address(self) -> str:
        """What goes into `InstanceRecord.transports`."""
        ...

    def add_handler(self, endpoint: str, handler: Handler) -> None:
        """Serve `endpoint` (``component.endpoint``) with `handler`."""
        ...

    async def stop_accepting(self) -> None:
        """Refuse new streams with Draining; open ones go on."""
        ...

    @property
    def open_streams(self) -> int:
        """Streams that have not ended."""
        ...

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        ...


class RequestPlane(Protocol):
    """A request plane of this process, both sides."""

    async def serve(self, instance_id: int) -> PlaneServer:
        """Start listening.

        Raises:
            CannotConnect: the address cannot be bound.
        """
        ...

    def send(
        self, instance: InstanceRecord, payload: bytes, sink: ResponseSink, context: RequestContext
    ) -> PlaneStream:
        """Open a stream to `instance`; connects when needed. Failures arrive at the sink.

        Cancelling `context` cancels the stream.
        """
        ...

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        ...
