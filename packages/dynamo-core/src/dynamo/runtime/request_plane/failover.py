"""Several request planes as one: the first that reaches an instance carries the request, the next takes over.

Made by `create_request_plane` when a plane with a broker has a fallback: its loss then costs the open streams, which
migrate, but no new request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from dynamo.errors import CannotConnect, DynamoError
from dynamo.protocols.claims import Claim, ClaimingPlane, ClaimingServer, CountsClaims
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import (
    ConnectingPlane,
    Handler,
    PlaneServer,
    PlaneStream,
    RequestPlane,
    ResponseSink,
)

__all__ = ["FailoverPlane"]


class FailoverPlane:
    """Implements `RequestPlane`, and `ClaimingPlane` and `ConnectingPlane` as far as one does.

    `planes` are in order of preference.
    """

    def __init__(self, planes: Sequence[RequestPlane]) -> None:
        self._planes = planes

    async def connect(self) -> None:
        """Try the brokers: one that refuses us is a mistake, although another plane would do."""
        for plane in self._planes:
            if isinstance(plane, ConnectingPlane):
                await plane.connect()

    async def serve(self, instance_id: int) -> PlaneServer:
        """Listen on every plane."""
        return _FailoverServer([await plane.serve(instance_id) for plane in self._planes])

    def reaches(self, instance: InstanceRecord) -> bool:
        """Whether any plane does."""
        return any(plane.reaches(instance) for plane in self._planes)

    def send(
        self, instance: InstanceRecord, payload: bytes, sink: ResponseSink, context: RequestContext
    ) -> PlaneStream:
        """Open a stream over the first plane that can be connected."""
        planes = [plane for plane in self._planes if plane.reaches(instance)]
        if len(planes) > 1:
            return _Attempts(planes, instance, payload, sink, context)
        return (planes or self._planes)[0].send(instance, payload, sink, context)

    def claim(self, instances: Sequence[InstanceRecord]) -> asyncio.Future[Claim | None] | None:
        """Of the first plane that can ask now."""
        for plane in self._planes:
            answer = plane.claim(instances) if isinstance(plane, ClaimingPlane) else None
            if answer is not None:
                return answer
        return None

    @property
    def claim_outcomes(self) -> Mapping[str, int]:
        """Of all planes together; see `CountsClaims`."""
        return _outcomes(self._planes)

    async def close(self) -> None:
        """Close every plane."""
        for plane in self._planes:
            await plane.close()


class _FailoverServer:
    """Implements `PlaneServer`, and `ClaimingServer` as far as one does."""

    def __init__(self, servers: Sequence[PlaneServer]) -> None:
        self._servers = servers

    @property
    def transports(self) -> dict[str, str]:
        return {name: address for server in self._servers for name, address in server.transports.items()}

    @property
    def open_streams(self) -> int:
        return sum(server.open_streams for server in self._servers)

    def add_handler(self, endpoint: str, handler: Handler) -> None:
        for server in self._servers:
            server.add_handler(endpoint, handler)

    def offer(self, record: InstanceRecord) -> InstanceRecord:
        for server in self._claiming():
            record = server.offer(record)
        return record

    async def join(self, record: InstanceRecord, has_room: Callable[[], bool]) -> None:
        for server in self._claiming():
            await server.join(record, has_room)

    async def leave(self) -> None:
        for server in self._claiming():
            await server.leave()

    @property
    def claim_outcomes(self) -> Mapping[str, int]:
        return _outcomes(self._servers)

    def _claiming(self) -> list[ClaimingServer]:
        return [server for server in self._servers if isinstance(server, ClaimingServer)]

    def stop_accepting(self) -> None:
        for server in self._servers:
            server.stop_accepting()

    async def close(self) -> None:
        for server in self._servers:
            await server.close()


def _outcomes(parts: Iterable[object]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        if isinstance(part, CountsClaims):
            total.update(part.claim_outcomes)
    return total


class _Attempts:
    """One request: the sink of its attempts, and the stream of its caller."""

    __slots__ = ("_attempt", "_context", "_instance", "_paused", "_payload", "_planes", "_sink", "_stream")

    def __init__(
        self,
        planes: list[RequestPlane],
        instance: InstanceRecord,
        payload: bytes,
        sink: ResponseSink,
        context: RequestContext,
    ) -> None:
        self._planes = planes
        self._instance = instance
        self._payload = payload
        self._sink = sink
        self._context = context
        self._paused = False
        self._attempt = 0
        self._stream: PlaneStream | None = None
        self._try_next()

    def on_items(self, items: list[bytes]) -> None:
        # From now on the request has been executed: it may not be sent again.
        self._planes.clear()
        self._sink.on_items(items)

    def on_end(self) -> None:
        self._sink.on_end()

    def on_error(self, error: DynamoError) -> None:
        # CannotConnect is the one failure of which nothing can have been executed.
        if self._planes and isinstance(error, CannotConnect) and not self._context.cancelled:
            self._try_next()
        else:
            self._sink.on_error(error)

    def cancel(self) -> None:
        self._planes.clear()
        if self._stream is not None:
            self._stream.cancel()

    def pause(self) -> None:
        self._paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        self._paused = False
        if self._stream is not None:
            self._stream.resume()

    def _try_next(self) -> None:
        plane = self._planes.pop(0)
        self._attempt += 1
        attempt = self._attempt
        stream = plane.send(self._instance, self._payload, self, self._context)
        if attempt != self._attempt:
            return  # it failed within `send`, and the next attempt has set its stream
        self._stream = stream
        if self._paused:
            stream.pause()
