"""The asking side in iterator form, for tools and custom components; the frontend uses sinks directly."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from dynamo.errors import DynamoError, NoInstances
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import PlaneStream, RequestPlane
from dynamo.runtime.instances import Instances

__all__ = ["EndpointClient", "encode_request", "stream_items"]

#: Payload of a request: msgpack.
encode_request = msgspec.msgpack.Encoder().encode


#: Items that may wait for a slow reader; what is under way when the instance is held back comes on top.
_WAITING_ITEMS = 256


class _QueueSink:
    """A response sink that feeds an iterator, and holds the instance back while its reader is behind."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[bytes] | DynamoError | None] = asyncio.Queue()
        self.stream: PlaneStream | None = None
        self._waiting = 0
        self._paused = False

    def on_items(self, items: list[bytes]) -> None:
        self.queue.put_nowait(items)
        self._waiting += len(items)
        if self._waiting >= _WAITING_ITEMS and not self._paused and self.stream is not None:
            self._paused = True
            self.stream.pause()

    def taken(self, items: int) -> None:
        """The reader is done with `items`."""
        self._waiting -= items
        # Half is left to read while more comes.
        if self._paused and self._waiting <= _WAITING_ITEMS // 2 and self.stream is not None:
            self._paused = False
            self.stream.resume()

    def on_end(self) -> None:
        self.queue.put_nowait(None)

    def on_error(self, error: DynamoError) -> None:
        self.queue.put_nowait(error)


async def stream_items(
    plane: RequestPlane, instance: InstanceRecord, payload: bytes, context: RequestContext, item_type: Any = Any
) -> AsyncIterator[Any]:
    """Items of one request to one instance, decoded as `item_type`. A slow reader holds the instance back.

    Leaving the iterator early cancels the request.

    Raises:
        DynamoError: what the instance or the connection failed with.
    """
    decode = msgspec.msgpack.Decoder(item_type).decode
    sink = _QueueSink()
    stream = sink.stream = plane.send(instance, payload, sink, context)
    ended = False
    try:
        while True:
            batch = await sink.queue.get()
            if batch is None or isinstance(batch, DynamoError):
                ended = True
                if batch is not None:
                    raise batch
                return
            for item in batch:
                yield decode(item)
            sink.taken(len(batch))
    finally:
        if not ended:
            stream.cancel()


class EndpointClient:
    """Requests to one endpoint, spread over its instances."""

    def __init__(self, address: EndpointAddress, plane: RequestPlane, instances: Instances) -> None:
        self.address = address
        self._plane = plane
        self._instances = instances
        self._turn = itertools.count()

    def instances(self) -> list[InstanceRecord]:
        """Who serves the endpoint now, in a stable order."""
        found = [record for record in self._instances.all() if record.address == self.address]
        return sorted(found, key=lambda record: record.instance_id)

    def round_robin(self, request: Any, context: RequestContext, item_type: Any = Any) -> AsyncIterator[Any]:
        """Send `request` to the next instance.

        Raises:
            NoInstances: nobody serves the endpoint.
        """
        found = self.instances()
        if not found:
            raise NoInstances(f"nobody serves {self.address}", retry_after_seconds=1)
        return self.direct(found[next(self._turn) % len(found)], request, context, item_type)

    def direct(
        self, instance: InstanceRecord, request: Any, context: RequestContext, item_type: Any = Any
    ) -> AsyncIterator[Any]:
        """Send `request` to `instance`."""
        return stream_items(self._plane, instance, encode_request(request), context, item_type)
