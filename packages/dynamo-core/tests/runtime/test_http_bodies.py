"""Bodies in pieces and local requests of the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dynamo.errors import Cancelled, InvalidRequest
from dynamo.runtime.http import HttpLimits, HttpServer, LocalExchange

WAIT = 20.0


@contextlib.asynccontextmanager
async def serving(handler, **limits):
    server = HttpServer(HttpLimits(**limits))
    server.route("POST", "/upload", handler, streams_body=True)
    port = await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await server.close()


def reading(results):
    """A handler that reads the whole body in a task and answers with its length."""
    tasks = []

    async def read(exchange):
        total = 0
        try:
            while data := await exchange.body_stream.read():
                total += len(data)
        except Cancelled as error:
            results.append(error)
        else:
            exchange.respond_json(200, total)

    return lambda exchange: tasks.append(asyncio.ensure_future(read(exchange)))


async def test_a_body_larger_than_memory_allows_is_read_in_pieces():
    async with serving(reading([]), body_bytes=64 << 20) as (reader, writer):
        size = 20 << 20
        writer.write(b"POST /upload HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % size)
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for _ in range(20):
            writer.write(bytes(1 << 20))
            await writer.drain()
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" not in answer
        assert await reader.readexactly(8) == b"%d" % size


async def test_a_chunked_body_above_the_limit_is_cut():
    results = []
    async with serving(reading(results), body_bytes=1000) as (reader, writer):
        writer.write(b"POST /upload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"3e8\r\n" + bytes(1000) + b"\r\n1\r\nx\r\n")
        assert (await asyncio.wait_for(reader.read(), WAIT)).startswith(b"HTTP/1.1 413")
    assert len(results) == 1


async def test_a_body_that_comes_too_slowly_is_given_up():
    results = []
    async with serving(reading(results), read_timeout_seconds=0.1) as (reader, writer):
        writer.write(b"POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nabc")
        assert (await asyncio.wait_for(reader.read(), WAIT)).startswith(b"HTTP/1.1 408")
    assert len(results) == 1


async def test_local_requests_get_answers_and_errors():
    whole = LocalExchange("POST", "/x", b"{}", {"a": "b"})
    whole.response_headers["x-y"] = "z"
    whole.respond_json(200, [1])
    whole.respond_json(500, [2])
    assert await whole.response() == (200, b"[1]", {"x-y": "z", "content-type": "application/json"})
    refused = LocalExchange("POST", "/x", b"")
    refused.respond_error(InvalidRequest("no", param="p", retry_after_seconds=3))
    answer = await refused.response()
    assert (answer.status, answer.headers["retry-after"]) == (400, "3")
    streamed = LocalExchange("POST", "/x", b"")
    streamed.start(200, "text/event-stream")
    assert (await streamed.response()).status == 500


async def test_who_stops_to_wait_has_left():
    left = []
    exchange = LocalExchange("POST", "/x", b"")
    exchange.on_disconnect(lambda: left.append(True))
    waiting = asyncio.ensure_future(exchange.response())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert left == [True]
    exchange.respond(200, b"")
    assert not exchange.responded
