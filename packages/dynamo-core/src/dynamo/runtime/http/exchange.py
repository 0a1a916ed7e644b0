"""One request and its response, as route handlers see them."""

from __future__ import annotations

import http
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from dynamo.errors import DynamoError
from dynamo.runtime.http.body import BodyStream

__all__ = ["Exchange", "ExchangeConnection"]

_encode_json = msgspec.json.Encoder().encode
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"


def _openai_error(error: DynamoError) -> tuple[int, Any]:
    return error.http_status, error.to_openai()


class ExchangeConnection(Protocol):
    """What an exchange needs of its connection."""

    @property
    def peer(self) -> str:
        """The client's address."""
        ...

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        ...

    def finish(self, exchange: Exchange) -> None:
        """The response is complete."""
        ...


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_connection",
        "_disconnect",
        "_head_held",
        "_writable",
        "body",
        "body_stream",
        "disconnected",
        "extra_head",
        "head_only",
        "headers",
        "keep_alive",
        "method",
        "params",
        "path",
        "query",
        "render_error",
        "responded",
        "response_headers",
        "streaming",
    )

    def __init__(self, connection: ExchangeConnection) -> None:
        self._connection = connection
        self.method = ""
        self.path = ""
        self.query = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.body_stream: BodyStream | None = None
        """The body of routes that take it in pieces, in place of `body`."""
        self.response_headers: dict[str, str] = {}
        """Added to the response, whoever makes it; names in lower case."""
        self.params: str = ""
        """What the ``*`` of the route stands for."""
        self.render_error: Callable[[DynamoError], tuple[int, Any]] = _openai_error
        """Status and JSON body of an error, for routes that speak another API than OpenAI's."""
        self.extra_head = b""
        """Header lines, each with its line end, that the response gets whoever makes it."""
        self.keep_alive = True
        self.head_only = False
        self.responded = False
        self.streaming = False
        self.disconnected = False
        self._head_held = b""
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
        self._finish()

    def respond_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send `value` as JSON."""
        self.respond(status, _encode_json(value), headers=headers)

    def respond_error(self, error: DynamoError, headers: Mapping[str, str] | None = None) -> None:
        """Send the body that `render_error` makes, with Retry-After when the error knows it."""
        extra = dict(headers or {})
        if error.retry_after_seconds is not None:
            extra["retry-after"] = str(max(1, round(error.retry_after_seconds)))
        status, body = self.render_error(error)
        self.respond_json(status, body, extra)

    def start(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Begin a chunked response. Its head goes out with its first chunk: one system call less for each stream."""
        if self.responded or self.disconnected:
            return
        self.responded = self.streaming = True
        self._head_held = self._head(status, content_type, headers) + b"transfer-encoding: chunked\r\n\r\n"

    def write(self, data: bytes) -> None:
        """Send one chunk."""
        if not self.disconnected:
            self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, data: bytes = b"") -> None:
        """Send the last chunk and complete the response."""
        if self.disconnected or not self.streaming:
            return
        self.streaming = False
        last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._send(last)
        self._finish()

    def lose(self) -> None:
        """The client is gone."""
        self.disconnected = True
        if self.body_stream is not None:
            self.body_stream.lose()
        callback, self._disconnect, self._writable = self._disconnect, None, None
        if callback is not None:
            callback()

    def set_writable(self, writable: bool) -> None:
        """The transport's buffer filled up or drained."""
        if self._writable is not None:
            self._writable(writable)

    def _send(self, chunk: bytes) -> None:
        if self._head_held:
            chunk, self._head_held = self._head_held + chunk, b""
        self._connection.write(chunk)

    def _finish(self) -> None:
        # They lead back here: what stays in a circle waits for the garbage collector, and a body may be megabytes.
        self._disconnect = self._writable = None
        self._connection.finish(self)

    def _head(self, status: int, content_type: str, headers: Mapping[str, str] | None) -> bytes:
        head = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
        head += b"content-type: " + content_type.encode("latin-1") + b"\r\n" + self.extra_head
        for name, value in {**self.response_headers, **(headers or {})}.items():
            head += f"{name}: {_one_line(value)}\r\n".encode("latin-1", "replace")
        return head if self.keep_alive else head + b"connection: close\r\n"


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")
