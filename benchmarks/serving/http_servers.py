"""The same small application on several HTTP servers: `python -m benchmarks.serving.http_servers NAME PORT`.

It reads the body of a chat request, finds how many tokens are asked for, and answers with prepared bytes: a whole body,
or one server-sent event per pass of the event loop. `benchmarks.http` compares what that costs.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import uvloop

from benchmarks.serving.model import MODEL
from dynamo.runtime.http import Exchange, HttpServer

__all__ = ["SERVERS", "asgi"]

SERVERS = ("own", "uvicorn", "granian")
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
DONE = b"data: [DONE]\n\n"
BODY = b'{"object":"list","data":[{"id":"%b"}],"choices":[{"message":{"content":"word"}}]}' % MODEL.encode()
_MAX_TOKENS = re.compile(rb'"max_tokens":(\d+)')
_Message: TypeAlias = "dict[str, Any]"


def _asked(body: bytes) -> int:
    """Events that are asked for; 0: a whole body."""
    found = _MAX_TOKENS.search(body)
    return int(found[1]) if found is not None and b'"stream":true' in body else 0


async def asgi(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[_Message]],
    send: Callable[[_Message], Awaitable[None]],
) -> None:
    """The application as ASGI servers call it."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    tokens = _asked(body)
    kind = b"text/event-stream" if tokens else b"application/json"
    headers = [(b"content-type", kind)]
    if not tokens:
        headers.append((b"content-length", b"%d" % len(BODY)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(tokens):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": DONE if tokens else BODY})


def _handle(exchange: Exchange) -> None:
    """The application on our server."""
    tokens = _asked(exchange.body)
    if not tokens:
        exchange.respond(200, BODY)
        return
    exchange.start(200, "text/event-stream")
    loop = asyncio.get_running_loop()

    def next_event(left: int) -> None:
        if left and not exchange.disconnected:
            exchange.write(EVENT)
            loop.call_soon(next_event, left - 1)
        else:
            exchange.end(DONE)

    next_event(tokens)


async def _own(port: int) -> None:
    server = HttpServer()
    server.route("GET", "/v1/models", _handle)
    server.route("POST", "/v1/chat/completions", _handle)
    await server.listen("127.0.0.1", port)
    await asyncio.Event().wait()


def _main(name: str, port: int) -> None:
    if name == "own":
        uvloop.run(_own(port))
    elif name == "uvicorn":
        import uvicorn

        uvicorn.run(
            asgi, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
        )
    else:
        from granian import Granian
        from granian.constants import Interfaces, Loops

        Granian(
            f"{__spec__.name}:asgi",
            address="127.0.0.1",
            port=port,
            interface=Interfaces.ASGI,
            loop=Loops.uvloop,
            log_enabled=False,
        ).serve()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
