"""Routes and connections of one listening socket."""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections.abc import Callable
from typing import TypeAlias

from dynamo.errors import CannotConnect, DynamoError, EngineError, InvalidRequest
from dynamo.runtime.http.connection import HttpConnection
from dynamo.runtime.http.exchange import Exchange
from dynamo.runtime.http.limits import HttpLimits

__all__ = ["HttpServer", "RouteHandler"]

logger = logging.getLogger(__name__)

RouteHandler: TypeAlias = Callable[[Exchange], None]


class _NotFound(InvalidRequest):
    """No such path."""

    code = "not_found"
    http_status = 404


class _MethodNotAllowed(InvalidRequest):
    """The path exists, with another method."""

    code = "method_not_allowed"
    http_status = 405


class HttpServer:
    """Routes and connections of one listening socket."""

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.connections: set[HttpConnection] = set()
        self.body_limits: dict[str, int] = {}
        """Path to its own body limit in bytes, where it differs."""
        self._routes: dict[str, dict[str, RouteHandler]] = {}
        self._patterns: list[tuple[str, str, str, RouteHandler]] = []
        self._streamed_bodies: set[tuple[str, str]] = set()
        self._server: asyncio.AbstractServer | None = None
        self.port = 0
        self.draining = False

    def route(self, method: str, path: str, handler: RouteHandler, *, streams_body: bool = False) -> None:
        """Serve `method` on `path`, in which one ``*`` stands for anything, as `Exchange.params`.

        ``/models/*/ready`` goes before ``/models/*``, in whatever order they are given. With `streams_body` the
        handler of a path without ``*`` is called when the head is there, and reads `Exchange.body_stream`.
        """
        if streams_body:
            self._streamed_bodies.add((method, path))
        prefix, star, suffix = path.partition("*")
        if star:
            self._patterns.append((method, prefix, suffix, handler))
            self._patterns.sort(key=lambda pattern: (-len(pattern[1]), -len(pattern[2])))
        else:
            self._routes.setdefault(path, {})[method] = handler

    async def listen(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, reuse_port: bool = False, flag: str = "--port"
    ) -> int:
        """Bind and serve; the port that was bound.

        Raises:
            CannotConnect: the address is taken or not ours; the hint names `flag`, or that of the host beside it.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: HttpConnection(self), host, port, ssl=tls, backlog=2048, reuse_port=reuse_port or None
            )
        except OSError as error:
            raise _cannot_listen(host, port, error, flag) from error
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    def stop_accepting(self) -> None:
        """Close the listening socket; exchanges go on, and kept-alive connections end with theirs."""
        self.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self.connections:
            connection.drain()

    async def close(self, grace_seconds: float = 0.0) -> None:
        """Stop accepting, give open exchanges `grace_seconds`, then drop every connection."""
        self.stop_accepting()
        deadline = asyncio.get_running_loop().time() + grace_seconds
        while any(c.busy for c in self.connections) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        for connection in list(self.connections):
            connection.abort()

    def dispatch(self, exchange: Exchange) -> None:
        """Find the handler and call it; what it raises becomes the response."""
        try:
            self._handler(exchange)(exchange)
        except DynamoError as error:
            exchange.respond_error(error)
        except Exception:
            logger.exception("handler of %s %s failed", exchange.method, exchange.path)
            exchange.respond_error(EngineError("internal error; the server's log has the details"))

    def body_limit(self, path: str) -> int:
        """Largest body in bytes for `path`."""
        return self.body_limits.get(path, self.limits.body_bytes)

    def streams_body(self, method: str, path: str) -> bool:
        """Whether the handler wants the body in pieces."""
        return (method, path) in self._streamed_bodies

    def _handler(self, exchange: Exchange) -> RouteHandler:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        methods = self._routes.get(exchange.path)
        if methods is not None:
            handler = methods.get(method)
            if handler is not None:
                return handler
            return _method_not_allowed(sorted(methods))
        path = exchange.path
        allowed: set[str] = set()
        for pattern_method, prefix, suffix, pattern_handler in self._patterns:
            if path.startswith(prefix) and path.endswith(suffix) and len(path) >= len(prefix) + len(suffix):
                if pattern_method == method:
                    exchange.params = path[len(prefix) : len(path) - len(suffix)]
                    return pattern_handler
                allowed.add(pattern_method)
        return _method_not_allowed(sorted(allowed)) if allowed else _not_found


def _cannot_listen(host: str, port: int, error: OSError, flag: str) -> CannotConnect:
    reason = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
    if error.errno == errno.EADDRINUSE:
        hint = f"choose another one with {flag}; 0 takes a free one"
    elif error.errno == errno.EACCES:
        hint = f"ports below 1024 are for root: choose another one with {flag}"
    else:
        # EADDRNOTAVAIL, or a name that cannot be resolved.
        flag = f"{flag.removesuffix('port')}host"
        hint = f"give an address of this machine with {flag}; 0.0.0.0 is all of them"
    return CannotConnect(f"cannot listen on {host}:{port}: {reason}", param=flag, hint=hint)


def _not_found(exchange: Exchange) -> None:
    raise _NotFound(f"there is no {exchange.path}", hint="GET /openapi.json or the documentation list the paths")


def _method_not_allowed(methods: list[str]) -> RouteHandler:
    def refuse(exchange: Exchange) -> None:
        error = _MethodNotAllowed(f"{exchange.method} is not served on {exchange.path}; use {' or '.join(methods)}")
        exchange.respond_error(error, {"allow": ", ".join(methods)})

    return refuse
