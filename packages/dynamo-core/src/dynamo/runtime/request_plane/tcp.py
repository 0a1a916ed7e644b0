"""The default request plane: multiplexed streams over one TCP connection (or Unix socket) per peer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from dynamo.errors import CannotConnect, ConfigError, TransportError
from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import Handler, PlaneOptions, PlaneStream, ResponseSink
from dynamo.runtime.hosts import announced_host, is_local
from dynamo.runtime.request_plane.client import ClientConnection
from dynamo.runtime.request_plane.server import ServerConnection

__all__ = ["TcpRequestPlane", "TcpServer", "split_address"]

logger = logging.getLogger(__name__)

_UNIX = "unix:"


class TcpServer:
    """The serving side in this process."""

    def __init__(self, options: PlaneOptions) -> None:
        self.options = options
        self.handlers: dict[str, Handler] = {}
        self.draining = False
        self.connections: set[ServerConnection] = set()
        self.address = ""
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, instance_id: int) -> None:
        """Bind. Raises CannotConnect when the address cannot be had."""
        loop = asyncio.get_running_loop()
        options = self.options
        try:
            if options.host == "unix":
                path = options.state_directory / f"{format_instance_id(instance_id)}.sock"
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._server = await loop.create_unix_server(self._accept, str(path), backlog=1024)
                self.address = f"{_UNIX}{path}"
            else:
                server = await loop.create_server(self._accept, options.host, options.port, backlog=1024)
                self._server = server
                host, port = server.sockets[0].getsockname()[:2]
                host = announced_host(host)
                self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        except OSError as error:
            raise CannotConnect(
                f"cannot listen on {options.host}:{options.port}: {error.strerror or error}",
                hint="choose another --tcp-host or --tcp-port",
            ) from error

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
        """Stop listening and drop all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self.connections):
            connection.close()
        if self.address.startswith(_UNIX):
            with contextlib.suppress(OSError):
                Path(self.address.removeprefix(_UNIX)).unlink()

    def _accept(self) -> ServerConnection:
        return ServerConnection(self)


class TcpRequestPlane:
    """Implements `dynamo.protocols.planes.RequestPlane`."""

    def __init__(self, options: PlaneOptions) -> None:
        self._options = options
        self._servers: list[TcpServer] = []
        self._clients: dict[str, ClientConnection] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, instance_id: int) -> TcpServer:
        """Start listening; see `dynamo.protocols.planes.RequestPlane.serve`."""
        options = self._options
        if not options.secret and not options.insecure and not is_local(options.host):
            raise ConfigError(
                f"other machines can reach {options.host}, and there is no plane secret",
                param="plane_secret",
                hint="set DYN_PLANE_SECRET or --plane-secret-file; --insecure-planes goes without",
            )
        server = TcpServer(options)
        await server.listen(instance_id)
        self._servers.append(server)
        return server

    def send(
        self, instance: InstanceRecord, payload: bytes, sink: ResponseSink, context: RequestContext
    ) -> PlaneStream:
        """Open a stream; see `dynamo.protocols.planes.RequestPlane.send`."""
        address = instance.transports.get("tcp", "")
        connection = self._clients.get(address)
        if connection is None or not connection.alive:
            connection = self._clients[address] = ClientConnection(self._options, address)
            self._run(self._connect(connection))
        return connection.open_stream(f"{instance.component}.{instance.endpoint}", payload, sink, context)

    async def close(self) -> None:
        """Close both sides."""
        for task in list(self._tasks):
            task.cancel()
        for connection in self._clients.values():
            connection.close()
        self._clients.clear()
        for server in self._servers:
            await server.close()
        self._servers.clear()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        address = connection.address
        try:
            if address.startswith(_UNIX):
                opening: Coroutine[Any, Any, Any] = loop.create_unix_connection(
                    lambda: connection, address.removeprefix(_UNIX)
                )
            else:
                host, port = split_address(address)
                opening = loop.create_connection(lambda: connection, host, port)
            await asyncio.wait_for(opening, self._options.connect_timeout_seconds)
        except (OSError, asyncio.TimeoutError, TransportError) as error:
            reason = str(error) or f"no answer within {self._options.connect_timeout_seconds:g} s"
            connection.close(CannotConnect(f"cannot connect to {address}: {reason}"))


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` taken apart.

    Raises:
        CannotConnect: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise CannotConnect(f"{address!r} is not an address of the form host:port")
    return host.strip("[]"), int(port)
