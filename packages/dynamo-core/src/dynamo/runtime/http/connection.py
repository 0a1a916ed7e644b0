"""One client connection: parses requests within their bounds and answers them one at a time, in order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import Protocol, cast
from urllib.parse import unquote

import httptools

from dynamo.errors import DynamoError, InvalidRequest, RequestTooLarge
from dynamo.runtime.http.body import BodyStream
from dynamo.runtime.http.deadline import Deadline
from dynamo.runtime.http.exchange import Exchange
from dynamo.runtime.http.limits import HttpLimits

__all__ = ["HttpConnection", "HttpHost"]

#: How long a refused client may go on sending before the connection is cut.
_LINGER_SECONDS = 5.0
#: A streamed body must bring this much within every read timeout: a 256 MiB file may take long, but not forever.
_LEAST_PROGRESS_BYTES = 32 << 10


class HttpHost(Protocol):
    """What a connection needs of the server."""

    @property
    def limits(self) -> HttpLimits:
        """Bounds."""
        ...

    @property
    def connections(self) -> set[HttpConnection]:
        """Open connections; a connection adds and removes itself."""
        ...

    @property
    def draining(self) -> bool:
        """Whether connections end with what they have begun."""
        ...

    def body_limit(self, path: str) -> int:
        """Largest body in bytes for `path`."""
        ...

    def streams_body(self, method: str, path: str) -> bool:
        """Whether the handler wants the body in pieces."""
        ...

    def dispatch(self, exchange: Exchange) -> None:
        """Serve one request: a whole one, or one whose body is streamed."""
        ...


class _HeadTooLarge(InvalidRequest):
    """More header bytes than allowed."""

    code = "headers_too_large"
    http_status = 431


class _TargetTooLong(InvalidRequest):
    """A path and query that no route can mean."""

    code = "uri_too_long"
    http_status = 414


class _NotImplementedMethod(InvalidRequest):
    """A method whose target is no path."""

    code = "not_implemented"
    http_status = 501


class _UnsupportedEncoding(InvalidRequest):
    """A body that would have to be unpacked."""

    code = "unsupported_content_encoding"
    http_status = 415


class _ReadTimeout(InvalidRequest):
    """A client that sends too slowly."""

    code = "request_timeout"
    http_status = 408


class HttpConnection(asyncio.Protocol):
    """One client connection: parses requests and answers them one at a time, in order."""

    def __init__(self, server: HttpHost) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._incoming: Exchange | None = None
        self._url = b""
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._timed_bytes = 0
        self._head_bytes = 0
        self._header_bytes = 0
        self._in_head = True
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._deadline = Deadline(self._loop, self._timed_out)
        self._refused = False
        self.peer = "?"

    @property
    def busy(self) -> bool:
        """Whether an exchange is open, or the end of a response has not been written yet."""
        unwritten = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return self._current is not None or unwritten > 0

    def drain(self) -> None:
        """End with what has begun; a connection that is idle now may bring one request more."""
        if self._current is not None and not self._waiting:
            self._current.keep_alive = False

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
        self._deadline.set(self._server.limits.idle_timeout_seconds)

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
        self._deadline.close()
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
        self._body_bytes = self._timed_bytes = 0
        self._deadline.set(self._server.limits.read_timeout_seconds)

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url
        # The other half is for headers.
        longest = self._server.limits.head_bytes // 2
        if len(self._url) > longest:
            raise _TargetTooLong(f"the path and query are longer than {longest} bytes")

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
        exchange.keep_alive = self._may_keep_alive(exchange)
        if exchange.method == "CONNECT":
            raise _NotImplementedMethod("this server is no proxy")
        if "host" not in exchange.headers and self._parser.get_http_version() == "1.1":
            # RFC 9112, 3.2.
            raise InvalidRequest("an HTTP/1.1 request needs a 'host' header")
        exchange.path, exchange.query = _path_and_query(self._url)
        encoding = exchange.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise _UnsupportedEncoding(f"bodies with content-encoding {encoding!r} are not read; send them as they are")
        length = exchange.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._server.body_limit(exchange.path):
            raise RequestTooLarge(self._too_large(exchange.path))
        if exchange.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._server.streams_body(exchange.method, exchange.path):
            exchange.body_stream = BodyStream(self._pause_reading, self._resume_reading)
            exchange.keep_alive = False  # for an answer that does not wait for the whole body
            self._take(exchange)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        exchange = cast("Exchange", self._incoming)
        if self._body_bytes > self._server.body_limit(exchange.path):
            raise RequestTooLarge(self._too_large(exchange.path))
        if exchange.body_stream is None:
            self._chunks.append(body)
        elif not exchange.responded:
            exchange.body_stream.feed(body)

    def on_message_complete(self) -> None:
        """The request is whole: serve it, or let it wait for its turn, unless that was done when its body began."""
        exchange = cast("Exchange", self._incoming)
        exchange.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._incoming = None
        self._in_head = True
        self._head_bytes = self._header_bytes = 0
        self._deadline.clear()
        if exchange.body_stream is not None:
            exchange.keep_alive = self._may_keep_alive(exchange) and not self._server.draining
            exchange.body_stream.end()
        else:
            self._take(exchange)

    def _may_keep_alive(self, exchange: Exchange) -> bool:
        return self._parser.should_keep_alive() and "upgrade" not in exchange.headers

    def _take(self, exchange: Exchange) -> None:
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
        if self._incoming is exchange and exchange.body_stream is not None:
            # Answered before its body was whole: what is left of that would be taken for the next request.
            self._refused = True
            self._resume_reading()
            exchange.body_stream.lose()
        if self._refused:
            self._linger()
        elif not exchange.keep_alive:
            if self._transport is not None:
                self._transport.close()
        elif self._waiting:
            # Not a direct call: a client that pipelines thousands of requests must not deepen the stack.
            self._loop.call_soon(self._serve_next)
        elif self._incoming is None:
            self._deadline.set(self._server.limits.idle_timeout_seconds)

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
            self._deadline.set(_LINGER_SECONDS)
        elif self._transport is not None:
            self._transport.close()

    def _serve_next(self) -> None:
        if self._current is None and self._waiting:
            self._serve(self._waiting.popleft())

    def _serve(self, exchange: Exchange) -> None:
        self._current = exchange
        if self._server.draining:
            self.drain()
        self._server.dispatch(exchange)

    def _refuse(self, error: DynamoError) -> None:
        self._refused = True
        if self._current is None or (self._current is self._incoming and not self._current.responded):
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

    def _body_goes_on(self) -> bool:
        """Whether a streamed body has come forward since the last look, or waits for its handler."""
        stream = self._incoming.body_stream if self._incoming is not None else None
        if stream is None:
            return False
        progress, self._timed_bytes = self._body_bytes - self._timed_bytes, self._body_bytes
        return stream.paused or progress >= _LEAST_PROGRESS_BYTES

    def _pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def _timed_out(self) -> None:
        if self._body_goes_on():
            self._deadline.set(self._server.limits.read_timeout_seconds)
        elif self._incoming is not None and self._current in (None, self._incoming):
            self._refuse(_ReadTimeout("the request did not arrive in time"))
        else:
            self.abort()


def _path_and_query(url: bytes) -> tuple[str, str]:
    try:
        target = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError as error:
        raise InvalidRequest("the request's path is not valid") from error
    return unquote((target.path or b"/").decode("latin-1")), (target.query or b"").decode("latin-1")


def _cause(error: BaseException) -> DynamoError | None:
    """The error that one of our parser callbacks raised, which httptools wraps."""
    cause = error.__cause__ or error.__context__
    return cause if isinstance(cause, DynamoError) else None
