"""The default request plane: multiplexed streams over one TCP connection (or Unix socket) per peer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from dynamo.errors import CannotConnect, ConfigError, TransportError
from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.hosts import announced_host, is_local
from dynamo.runtime.request_plane.client import ClientConnection
from dynamo.runtime.request_plane.pool import ConnectionPool
from dynamo.runtime.request_plane.server import ServerConnection, ServerHost
from dynamo.runtime.request_plane.tls import client_context, server_context

__all__ = ["TcpRequestPlane", "TcpServer", "split_address"]

_UNIX = "unix:"


class TcpServer(ServerHost):
    """The serving side in this process."""

    def __init__(self, options: PlaneOptions) -> None:
        super().__init__(options)
        self.address = ""
        self._server: asyncio.AbstractServer | None = None

    @property
    def transports(self) -> dict[str, str]:
        """Where it listens, for discovery."""
        return {TcpRequestPlane.transport: self.address}

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
                context = server_context(options.tls)
                server = await loop.create_server(self._accept, options.host, options.port, backlog=1024, ssl=context)
                self._server = server
                host, port = server.sockets[0].getsockname()[:2]
                host = announced_host(host)
                self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        except OSError as error:
            raise CannotConnect(
                f"cannot listen on {options.host}:{options.port}: {error.strerror or error}",
                hint="choose another --tcp-host or --tcp-port",
            ) from error

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await super().close()
        if self.address.startswith(_UNIX):
            with contextlib.suppress(OSError):
                Path(self.address.removeprefix(_UNIX)).unlink()

    def _accept(self) -> ServerConnection:
        return ServerConnection(self)


class TcpRequestPlane(ConnectionPool):
    """Implements `dynamo.protocols.planes.RequestPlane`."""

    transport = "tcp"

    async def _listen(self, instance_id: int) -> TcpServer:
        options = self.options
        authenticated = options.secret or options.tls.client_ca_file
        if not authenticated and not options.insecure and not is_local(options.host):
            raise ConfigError(
                f"other machines can reach {options.host}, and there is no plane secret",
                param="plane_secret",
                hint="set DYN_PLANE_SECRET or --plane-secret-file, or ask for client certificates with "
                "--tcp-tls-client-ca-cert-path; --insecure-planes goes without",
            )
        server = TcpServer(options)
        await server.listen(instance_id)
        return server

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
                context = client_context(self.options.tls)
                name = (self.options.tls.server_name or host) if context is not None else None
                opening = loop.create_connection(lambda: connection, host, port, ssl=context, server_hostname=name)
            await asyncio.wait_for(opening, self.options.connect_timeout_seconds)
        except (OSError, ValueError, asyncio.TimeoutError, TransportError, ConfigError) as error:
            # ValueError: what discovery says is an address need not be one (a label of 64 characters, a zero byte).
            reason = str(error) or f"no answer within {self.options.connect_timeout_seconds:g} s"
            connection.close(CannotConnect(f"cannot connect to {address}: {reason}"))


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` taken apart.

    Raises:
        CannotConnect: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise CannotConnect(f"{address!r} is not an address of the form host:port")
    return host.strip("[]"), int(port)
