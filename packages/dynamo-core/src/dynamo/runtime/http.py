"""The one HTTP/1.1 server: system ports and debug pages use it as it is, the OpenAI frontend builds on it.

A route handler is a plain function that gets an :class:`Exchange` (request in, response out) and returns at once; it
answers when it can. There is no task, no queue and no header dictionary copy per request or chunk, which is what keeps
a streamed token at a few microseconds. Input is hostile: head, body, pipelining and idle time are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast
from urllib.parse import unquote

import httptools
import msgspec

from dynamo.errors import CannotConnect, DynamoError, EngineError, InvalidRequest, RequestTooLarge

__all__ = ["Exchange", "HttpLimits", "HttpServer", "RouteHandler"]

logger = logging.getLogger(__name__)

#: How long a refused client may go on sending before the connection is cut.
_LINGER_SECONDS = 5.0

_encode_json = msgspec.json.Encoder().encode
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"


class HttpLimits(msgspec.Struct, frozen=True):
    """Bounds of one server."""

    head_bytes: int = 32 << 10
    body_bytes: int = 8 << 20
    pipelined_requests: int = 8
    """Requests that wait on one connection for their turn."""
    read_timeout_seconds: float = 30.0
    """For a whole request, from its first byte."""
    idle_timeout_seconds: float = 75.0
    """For the next request of a kept-alive connection."""
    connections: int = 20000


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_connection",
        "_disconnect",
        "_writable",
        "body",
        "disconnected",
        "head_only",
        "headers",
        "keep_alive",
        "method",
        "params",
        "path",
        "query",
        "responded",
        "streaming",
    )

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.method = ""
        self.path = ""
        self.query = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.params: str = ""
        """What follows the prefix of a prefix route."""
        self.keep_alive = True
        self.head_only = False
        self.responded = False
        self.streaming = False
        self.disconnected = False
        self._disconnect: Callable[[], None] | None = None
        self._writable: Callable[[bool], None] | None = None

    @property
    def client(self) -> str:
        """The client's address, for logs."""
        return self._connection.peer

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the client goes away before the response is complete."""
        if self.disconnected:
            callback()
        else:
            self._disconnect = callback

    def on_writable(self, callback: Callable[[bool], None]) -> None:
        """Call `callback(False)` when the client reads too slowly, `callback(True)` when it has caught up."""
        self._writable = callback

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole response."""
        if self.responded or self.disconnected:
            return
        self.responded = True
        head = self._head(status, content_type, headers) + b"content-length: %d\r\n\r\n" % len(body)
        self._connection.write(head if self.head_only else head + body)
        self._connection.finish(self)

    def respond_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send `value` as JSON."""
        self.respond(status, _encode_json(value), headers=headers)

    def respond_error(self, error: DynamoError, headers: Mapping[str, str] | None = None) -> None:
        """Send OpenAI's error body, with Retry-After when the error knows it."""
        extra = dict(headers or {})
        if error.retry_after_seconds is not None:
            extra["retry-after"] = str(max(1, round(error.retry_after_seconds)))
        self.respond_json(error.http_status, error.to_openai(), extra)

    def start(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Begin a chunked response."""
        if self.responded or self.disconnected:
            return
        self.responded = self.streaming = True
        self._connection.write(self._head(status, content_type, headers) + b"transfer-encoding: chunked\r\n\r\n")

    def write(self, data: bytes) -> None:
        """Send one chunk."""
        if not self.disconnected:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, data: bytes = b"") -> None:
        """Send the last chunk and complete the response."""
        if self.disconnected or not self.streaming:
            return
        self.streaming = False
        last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._connection.write(last)
        self._connection.finish(self)

    def lose(self) -> None:
        """The client is gone."""
        self.disconnected = True
        callback, self._disconnect = self._disconnect, None
        if callback is not None:
            callback()

    def set_writable(self, writable: bool) -> None:
        """The transport's buffer filled up or drained."""
        if self._writable is not None:
            self._writable(writable)

    def _head(self, status: int, content_type: str, headers: Mapping[str, str] | None) -> bytes:
        head = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
        head += b"content-type: " + content_type.encode("latin-1") + b"\r\n"
        for name, value in (headers or {}).items():
            head += f"{name}: {_one_line(value)}\r\n".encode("latin-1", "replace")
        return head if self.keep_alive else head + b"connection: close\r\n"


RouteHandler: TypeAlias = Callable[[Exchange], None]


class HttpServer:
    """Routes and connections of one listening socket."""

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.connections: set[_Connection] = set()
        self.body_limits: dict[str, int] = {}
        """Path to its own body limit in bytes, where it differs."""
        self._routes: dict[str, dict[str, RouteHandler]] = {}
        self._prefixes: list[tuple[str, str, RouteHandler]] = []
        self._server: asyncio.AbstractServer | None = None
        self.port = 0

    def route(self, method: str, path: str, handler: RouteHandler) -> None:
        """Serve `method` on `path`; a path that ends in ``/*`` matches everything below it, as `Exchange.params`."""
        if path.endswith("/*"):
            self._prefixes.append((method, path[:-1], handler))
        else:
            self._routes.setdefault(path, {})[method] = handler

    async def listen(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, reuse_port: bool = False, flag: str = "--port"
    ) -> int:
        """Bind and serve; the port that was bound.

        Raises:
            CannotConnect: the address is taken or not ours; the hint names `flag`.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _Connection(self), host, port, ssl=tls, backlog=2048, reuse_port=reuse_port or None
            )
        except OSError as error:
            taken = "it is in use" if error.errno in (98, 48) else (error.strerror or str(error))
            raise CannotConnect(
                f"cannot listen on {host}:{port}: {taken}",
                param=flag,
                hint=f"choose another one with {flag}; 0 takes a free one",
            ) from error
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    def stop_accepting(self) -> None:
        """Close the listening socket; exchanges go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

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

    def _handler(self, exchange: Exchange) -> RouteHandler:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        methods = self._routes.get(exchange.path)
        if methods is not None:
            handler = methods.get(method)
            if handler is not None:
                return handler
            return _method_not_allowed(sorted(methods))
        for prefix_method, prefix, prefix_handler in self._prefixes:
            if exchange.path.startswith(prefix) and prefix_method == method:
                exchange.params = exchange.path[len(prefix) :]
                return prefix_handler
        return _not_found


class _Connection(asyncio.Protocol):
    """One client connection: parses requests and answers them one at a time, in order."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._incoming: Exchange | None = None
        self._url = b""
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._header_bytes = 0
        self._in_head = True
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self.peer = "?"

    @property
    def busy(self) -> bool:
        """Whether an exchange is open."""
        return self._current is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Transport callback."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._server.connections) >= self._server.limits.connections:
            transport.abort()  # type: ignore[attr-defined]
            return
        self._server.connections.add(self)
        with contextlib.suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) and name else "local"
        self._set_timer(self._server.limits.idle_timeout_seconds)

    def data_received(self, data: bytes) -> None:
        """Transport callback."""
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request itself has been answered, over HTTP/1.1 as RFC 9110 allows; what follows it is not HTTP.
            self._refused = True
        except httptools.HttpParserError as error:
            self._refuse(_cause(error) or InvalidRequest(f"malformed HTTP request: {error}"))
        else:
            if self._in_head and self._head_bytes > self._server.limits.head_bytes:
                self._refuse(self._head_too_large())

    def eof_received(self) -> bool:
        """Transport callback: a client that half-closes before its answer is complete has gone away."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Transport callback."""
        self._server.connections.discard(self)
        self._set_timer(None)
        self._transport = None
        self._waiting.clear()
        current, self._current = self._current, None
        if current is not None:
            current.lose()

    def pause_writing(self) -> None:
        """Transport callback."""
        if self._current is not None:
            self._current.set_writable(False)

    def resume_writing(self) -> None:
        """Transport callback."""
        if self._current is not None:
            self._current.set_writable(True)

    # Parser callbacks

    def on_message_begin(self) -> None:
        """A request starts."""
        self._incoming = Exchange(self)
        self._url = b""
        self._chunks = []
        self._body_bytes = 0
        self._set_timer(self._server.limits.read_timeout_seconds)

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; of repeated ones the last counts, except that they are joined where HTTP says so."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self._server.limits.head_bytes:
            raise self._head_too_large()
        headers = cast("Exchange", self._incoming).headers
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        """The head is complete: check what can be checked before the body comes."""
        exchange = cast("Exchange", self._incoming)
        self._in_head = False
        exchange.method = self._parser.get_method().decode("ascii")
        exchange.head_only = exchange.method == "HEAD"
        exchange.keep_alive = self._parser.should_keep_alive() and "upgrade" not in exchange.headers
        target = httptools.parse_url(self._url)
        exchange.path = unquote((target.path or b"/").decode("latin-1"))
        exchange.query = (target.query or b"").decode("latin-1")
        length = exchange.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._server.body_limit(exchange.path):
            raise RequestTooLarge(self._too_large(exchange.path))
        if exchange.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        path = cast("Exchange", self._incoming).path
        if self._body_bytes > self._server.body_limit(path):
            raise RequestTooLarge(self._too_large(path))
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """The request is whole: serve it, or let it wait for its turn."""
        exchange = cast("Exchange", self._incoming)
        exchange.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._incoming = None
        self._in_head = True
        self._head_bytes = self._header_bytes = 0
        self._set_timer(None)
        if self._current is None:
            self._serve(exchange)
        elif len(self._waiting) < self._server.limits.pipelined_requests:
            self._waiting.append(exchange)
        else:
            raise InvalidRequest("too many pipelined requests")

    # Used by Exchange

    def write(self, data: bytes) -> None:
        """Queue bytes on the transport."""
        if self._transport is not None:
            self._transport.write(data)

    def finish(self, exchange: Exchange) -> None:
        """The response of `exchange` is complete."""
        if self._current is not exchange:
            return
        self._current = None
        if self._refused:
            self._linger()
        elif not exchange.keep_alive:
            if self._transport is not None:
                self._transport.close()
        elif self._waiting:
            # Not a direct call: a client that pipelines thousands of requests must not deepen the stack.
            self._loop.call_soon(self._serve_next)
        elif self._incoming is None:
            self._set_timer(self._server.limits.idle_timeout_seconds)

    def abort(self) -> None:
        """Drop the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def _linger(self) -> None:
        """Close after a refusal, without losing it.

        The client may still be sending. Closing at once would answer that with a reset, which discards the refusal
        before the client reads it: so only our side is closed, and what comes is thrown away for a while.
        """
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
            self._set_timer(_LINGER_SECONDS)
        elif self._transport is not None:
            self._transport.close()

    def _serve_next(self) -> None:
        if self._current is None and self._waiting:
            self._serve(self._waiting.popleft())

    def _serve(self, exchange: Exchange) -> None:
        self._current = exchange
        self._server.dispatch(exchange)

    def _refuse(self, error: DynamoError) -> None:
        self._refused = True
        if self._current is None:
            exchange = self._incoming or Exchange(self)
            exchange.keep_alive = False
            self._current = exchange
            exchange.respond_error(error)
        elif self._transport is not None:
            # An answer is under way: a second one in its middle would corrupt it.
            self._transport.abort()

    def _head_too_large(self) -> InvalidRequest:
        return _HeadTooLarge(f"request head above the limit of {self._server.limits.head_bytes} bytes")

    def _too_large(self, path: str) -> str:
        return f"request body above the limit of {self._server.body_limit(path)} bytes"

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self._timed_out)

    def _timed_out(self) -> None:
        if self._incoming is not None and self._current is None:
            self._refuse(_ReadTimeout("the request did not arrive in time"))
        else:
            self.abort()


class _HeadTooLarge(InvalidRequest):
    """More header bytes than allowed."""

    code = "headers_too_large"
    http_status = 431


class _ReadTimeout(InvalidRequest):
    """A client that sends too slowly."""

    code = "request_timeout"
    http_status = 408


class _NotFound(InvalidRequest):
    """No such path."""

    code = "not_found"
    http_status = 404


class _MethodNotAllowed(InvalidRequest):
    """The path exists, with another method."""

    code = "method_not_allowed"
    http_status = 405


def _cause(error: BaseException) -> DynamoError | None:
    """The error that one of our parser callbacks raised, which httptools wraps."""
    cause = error.__cause__ or error.__context__
    return cause if isinstance(cause, DynamoError) else None


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")


def _not_found(exchange: Exchange) -> None:
    raise _NotFound(f"there is no {exchange.path}", hint="GET /openapi.json or the documentation list the paths")


def _method_not_allowed(methods: list[str]) -> RouteHandler:
    def refuse(exchange: Exchange) -> None:
        error = _MethodNotAllowed(f"{exchange.method} is not served on {exchange.path}; use {' or '.join(methods)}")
        exchange.respond_error(error, {"allow": ", ".join(methods)})

    return refuse
