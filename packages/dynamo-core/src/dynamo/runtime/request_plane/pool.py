"""A request plane of multiplexed connections, one per address; a subclass knows how to listen and how to connect."""

from __future__ import annotations

import abc
from typing import ClassVar

from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import PlaneOptions, PlaneServer, PlaneStream, ResponseSink
from dynamo.runtime.request_plane.client import ClientConnection
from dynamo.runtime.tasks import Tasks

__all__ = ["ConnectionPool"]


class ConnectionPool(abc.ABC):
    """Implements most of `dynamo.protocols.planes.RequestPlane`."""

    #: Key of this plane's address in `InstanceRecord.transports`.
    transport: ClassVar[str]

    def __init__(self, options: PlaneOptions) -> None:
        self.options = options
        self._servers: list[PlaneServer] = []
        self._clients: dict[str, ClientConnection] = {}
        self._tasks = Tasks()

    async def serve(self, instance_id: int) -> PlaneServer:
        """Start listening; see `dynamo.protocols.planes.RequestPlane.serve`."""
        server = await self._listen(instance_id)
        self._servers.append(server)
        return server

    def reaches(self, instance: InstanceRecord) -> bool:
        """Whether `instance` announces this plane."""
        return self.transport in instance.transports

    def send(
        self, instance: InstanceRecord, payload: bytes, sink: ResponseSink, context: RequestContext
    ) -> PlaneStream:
        """Open a stream; see `dynamo.protocols.planes.RequestPlane.send`."""
        address = instance.transports.get(self.transport, "")
        connection = self._clients.get(address)
        if connection is None or not connection.alive:
            # Workers come back on other ports: without this the lost connections of months would pile up.
            self._clients = {peer: known for peer, known in self._clients.items() if known.alive}
            connection = self._clients[address] = ClientConnection(self.options, address)
            self._tasks.spawn(self._connect(connection))
        return connection.open_stream(f"{instance.component}.{instance.endpoint}", payload, sink, context)

    async def close(self) -> None:
        """Close both sides."""
        await self._tasks.cancel()
        for connection in self._clients.values():
            connection.close()
        self._clients.clear()
        for server in self._servers:
            await server.close()
        self._servers.clear()

    @abc.abstractmethod
    async def _listen(self, instance_id: int) -> PlaneServer:
        """Raises what `serve` raises."""

    @abc.abstractmethod
    async def _connect(self, connection: ClientConnection) -> None:
        """Give `connection` a transport, or close it with the reason."""
