"""The least that an HTTP server in Python costs: uvloop, httptools and prepared bytes. `floor` of the benchmarks.

It answers a chat request with prepared chunks, one per pass of the event loop or at a pace, and anything else with a
prepared list of models. It checks nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from typing import cast

import httptools
import uvloop

from benchmarks.serving.model import MODEL

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_BODY = b'{"object":"list","data":[{"id":"%b"}],"choices":[{"message":{"content":"word"}}]}' % MODEL.encode()
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_MAX_TOKENS = re.compile(rb'"max_tokens":(\d+)')
_SECONDS = 1 / float(sys.argv[2]) if float(sys.argv[2]) else 0.0


class _Server(asyncio.Protocol):
    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._body = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._left = 0

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        asked = _MAX_TOKENS.search(body)
        if asked is None or b'"stream":true' not in body:
            self._transport.write(_WHOLE)
            return
        self._left = int(asked[1])
        self._transport.write(_HEAD)
        self._next()

    def _next(self) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        if not self._left:
            self._transport.write(_CHUNK + _LAST)
            return
        self._transport.write(_CHUNK)
        if _SECONDS:
            self._loop.call_later(_SECONDS, self._next)
        else:
            self._loop.call_soon(self._next)


async def _main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
