"""The HTTP server over real sockets: routing, bodies, streaming, limits and rude clients."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from dynamo.errors import CannotConnect, InvalidRequest, RateLimited
from dynamo.runtime.http import HttpLimits, HttpServer

TIMEOUT = 10.0
LIMITS = HttpLimits(
    head_bytes=2048, body_bytes=1000, pipelined_requests=2, read_timeout_seconds=0.3, idle_timeout_seconds=5
)


@pytest.fixture
async def server():
    made = HttpServer(LIMITS)
    await made.listen("127.0.0.1", 0)
    yield made
    await made.close()


class Client:
    """A connection that reads whole responses."""

    def __init__(self, server: HttpServer):
        self.port = server.port

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_):
        self.writer.close()

    def send(self, text: str | bytes):
        self.writer.write(text.encode() if isinstance(text, str) else text)

    async def response(self):
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), TIMEOUT)).decode()
        status = int(head.split()[1])
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(await asyncio.wait_for(self.reader.readline(), TIMEOUT), 16)
                body += (await self.reader.readexactly(size + 2))[:-2]
                if size == 0:
                    return status, headers, body
        return status, headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def closed(self):
        return await asyncio.wait_for(self.reader.read(), TIMEOUT) == b""


def get(path: str, extra: str = "") -> str:
    return f"GET {path} HTTP/1.1\r\nhost: t\r\n{extra}\r\n"


def post(path: str, body: bytes, extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode() + body


async def test_a_route_gets_method_path_query_headers_and_body(server):
    seen = []

    def echo(exchange):
        seen.append((exchange.method, exchange.path, exchange.query, exchange.headers["x-a"], exchange.body))
        exchange.respond_json(200, {"ok": True})

    server.route("POST", "/e cho", echo)
    async with Client(server) as client:
        client.send(post("/e%20cho?a=1&b=2", b"body", "X-A: yes\r\n"))
        status, headers, body = await client.response()
    assert (status, headers["content-type"], body) == (200, "application/json", b'{"ok":true}')
    assert seen == [("POST", "/e cho", "a=1&b=2", "yes", b"body")]


async def test_prefix_routes_give_the_rest_of_the_path(server):
    server.route("GET", "/v1/models/*", lambda exchange: exchange.respond(200, exchange.params.encode()))
    async with Client(server) as client:
        client.send(get("/v1/models/org/name"))
        assert (await client.response())[2] == b"org/name"


async def test_kept_alive_and_pipelined_requests_are_answered_in_order(server):
    waiting = []
    server.route("GET", "/slow", waiting.append)
    server.route("GET", "/fast", lambda exchange: exchange.respond(200, b"fast"))
    async with Client(server) as client:
        client.send(get("/slow") + get("/fast"))
        while not waiting:
            await asyncio.sleep(0)
        waiting[0].respond(200, b"slow")
        assert (await client.response())[2] == b"slow"
        assert (await client.response())[2] == b"fast"


async def test_too_many_pipelined_requests_drop_the_connection(server):
    server.route("GET", "/never", lambda exchange: None)
    async with Client(server) as client:
        client.send(get("/never") * 5)
        assert await client.closed()


async def test_a_streamed_response_is_chunked(server):
    def stream(exchange):
        exchange.start(200, "text/event-stream")
        exchange.write(b"one")
        exchange.end(b"two")

    server.route("GET", "/s", stream)
    async with Client(server) as client:
        client.send(get("/s"))
        assert (await client.response())[2] == b"onetwo"
        client.send(get("/s"))
        assert (await client.response())[0] == 200


async def test_head_has_no_body(server):
    server.route("GET", "/x", lambda exchange: exchange.respond(200, b"12345"))
    async with Client(server) as client:
        client.send("HEAD /x HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
        assert "content-length: 5" in head
        assert await client.closed()


async def test_a_disconnect_reaches_the_handler(server):
    gone = asyncio.Event()
    begun = asyncio.Event()

    def hang(exchange):
        exchange.on_disconnect(gone.set)
        begun.set()

    server.route("GET", "/hang", hang)
    async with Client(server) as client:
        client.send(get("/hang"))
        await asyncio.wait_for(begun.wait(), TIMEOUT)
    await asyncio.wait_for(gone.wait(), TIMEOUT)
    assert not server.connections


async def test_a_slow_reader_is_told_to_the_handler(server):
    told = []
    exchanges = []

    def flood(exchange):
        exchange.on_writable(told.append)
        exchange.start(200, "text/plain")
        exchanges.append(exchange)
        exchange.write(b"x" * (8 << 20))

    server.route("GET", "/flood", flood)
    async with Client(server) as client:
        client.send(get("/flood"))
        while not told:
            await asyncio.sleep(0)
        assert told == [False]
        await asyncio.wait_for(client.reader.readexactly(8 << 20), TIMEOUT)
        while len(told) < 2:
            await asyncio.sleep(0)
        assert told == [False, True]
        exchanges[0].end()


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (get("/nowhere").encode(), 404, "not_found"),
        (b"DELETE /x HTTP/1.1\r\nhost: t\r\n\r\n", 405, "method_not_allowed"),
        (b"DELETE /x/y HTTP/1.1\r\nhost: t\r\n\r\n", 405, "method_not_allowed"),
        (b"POST /x HTTP/1.1\r\nhost: t\r\ncontent-encoding: gzip\r\n\r\n", 415, "unsupported_content_encoding"),
        (post("/x", b"y" * 1001), 413, "request_too_large"),
        (b"POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 99999999\r\n\r\n", 413, "request_too_large"),
        (
            b"POST /x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n"
            + b"z" * 1001
            + b"\r\n0\r\n\r\n",
            413,
            "request_too_large",
        ),
        (b"nonsense\r\n\r\n", 400, "invalid_request"),
        (b"GET /x HTTP/9.9\r\n\r\n", 400, "invalid_request"),
        (b"GET /x HTTP/1.1\r\ncontent-length: -5\r\n\r\n", 400, "invalid_request"),
        (b"GET /x HTTP/1.1\r\nx: " + b"h" * 3000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /x HTTP/1.1\r\nx: " + b"h" * 3000, 431, "headers_too_large"),
        (b"GET /x HTTP/1.1\r\nhost: t\r\n", 408, "request_timeout"),
        (b"POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nabc", 408, "request_timeout"),
    ],
)
async def test_bad_requests_get_openai_errors(server, request_bytes, status, code):
    for path in ("/x", "/x/*"):
        server.route("POST", path, lambda exchange: exchange.respond(200, b""))
    async with Client(server) as client:
        client.send(request_bytes)
        got, headers, body = await client.response()
    error = json.loads(body)["error"]
    assert (got, error["code"]) == (status, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if status == 405:
        assert headers["allow"] == "POST"


async def test_errors_of_handlers_become_responses(server, caplog):
    def limited(exchange):
        raise RateLimited("slow down", retry_after_seconds=7)

    def broken(exchange):
        raise KeyError("secret detail")

    def bad(exchange):
        raise InvalidRequest("no", param="temperature")

    for path, handler in (("/limited", limited), ("/broken", broken), ("/bad", bad)):
        server.route("GET", path, handler)
    async with Client(server) as client:
        client.send(get("/limited"))
        status, headers, _ = await client.response()
        assert (status, headers["retry-after"]) == (429, "7")
        client.send(get("/broken"))
        status, _, body = await client.response()
        assert status == 500
        assert b"secret detail" not in body
        client.send(get("/bad"))
        assert json.loads((await client.response())[2])["error"]["param"] == "temperature"


async def test_expect_continue_is_answered(server):
    server.route("POST", "/x", lambda exchange: exchange.respond(200, exchange.body))
    async with Client(server) as client:
        client.send(b"POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        assert await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), TIMEOUT) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"ok")
        assert (await client.response())[2] == b"ok"


async def test_an_upgrade_is_ignored_and_the_connection_closed(server):
    server.route("GET", "/x", lambda exchange: exchange.respond(200, b"plain"))
    async with Client(server) as client:
        client.send(get("/x", "upgrade: h2c\r\nconnection: upgrade\r\n"))
        status, headers, body = await client.response()
        assert (status, body, headers["connection"]) == (200, b"plain", "close")
        assert await client.closed()


async def test_header_values_cannot_split_the_response(server):
    server.route("GET", "/h", lambda e: e.respond(200, b"", headers={"x-echo": "a\r\nset-cookie: evil"}))
    async with Client(server) as client:
        client.send(get("/h"))
        _, headers, _ = await client.response()
    assert "set-cookie" not in headers


async def test_a_taken_port_names_the_flag(server):
    with pytest.raises(CannotConnect, match="in use") as caught:
        await HttpServer().listen("127.0.0.1", server.port, flag="--http-port")
    assert "--http-port" in str(caught.value.hint)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_that_is_not_ours_names_the_flag_of_the_host(host):
    with pytest.raises(CannotConnect, match="cannot listen on") as caught:
        await HttpServer().listen(host, 0, flag="--http-port")
    assert caught.value.param == "--http-host"
    assert "--http-host" in caught.value.hint
    assert "--http-port" not in caught.value.hint


async def test_closing_waits_for_open_exchanges(server):
    open_exchanges = []
    server.route("GET", "/open", open_exchanges.append)
    async with Client(server) as client:
        client.send(get("/open"))
        while not open_exchanges:
            await asyncio.sleep(0)
        closing = asyncio.create_task(server.close(grace_seconds=TIMEOUT))
        with pytest.raises(OSError), socket.socket() as late:  # noqa: PT012
            await asyncio.sleep(0.05)
            late.connect(("127.0.0.1", server.port))
        open_exchanges[0].respond(200, b"done")
        assert (await client.response())[2] == b"done"
        await closing


async def test_kept_alive_connections_end_with_their_exchange_when_the_server_closes(server):
    open_exchanges = []
    server.route("GET", "/open", open_exchanges.append)
    async with Client(server) as busy, Client(server) as idle:
        busy.send(get("/open"))
        while not open_exchanges:
            await asyncio.sleep(0)
        closing = asyncio.create_task(server.close(grace_seconds=TIMEOUT))
        await asyncio.sleep(0)
        idle.send(get("/open"))
        while len(open_exchanges) < 2:
            await asyncio.sleep(0.001)
        for exchange, client in zip(open_exchanges, (busy, idle), strict=True):
            exchange.respond(200, b"done")
            _, headers, body = await client.response()
            assert (headers["connection"], body) == ("close", b"done")
            assert await client.closed()
        await closing


async def test_a_closing_server_writes_what_a_slow_reader_has_not_taken(server):
    body = b"x" * (16 << 20)
    server.route("GET", "/big", lambda exchange: exchange.respond(200, body))
    async with Client(server) as client:
        client.send(get("/big"))
        while not any(connection.busy for connection in server.connections):
            await asyncio.sleep(0)
        closing = asyncio.create_task(server.close(grace_seconds=TIMEOUT))
        assert (await client.response())[2] == body
        await closing


@pytest.mark.parametrize(
    ("request_head", "status", "code"),
    [
        (f"GET /{'a' * 1500} HTTP/1.1\r\nhost: t\r\n\r\n", 414, "uri_too_long"),
        (f"GET /{'a' * 70_000} HTTP/1.1\r\nhost: t\r\n\r\n", 414, "uri_too_long"),
        (f"GET /?{'a' * 1500} HTTP/1.1\r\nhost: t\r\n\r\n", 414, "uri_too_long"),
        ("CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n", 501, "not_implemented"),
        ("GET /x HTTP/1.1\r\n\r\n", 400, "invalid_request"),
        ("GET http:///// HTTP/1.1\r\nhost: t\r\n\r\n", 400, "invalid_request"),
    ],
)
async def test_heads_that_no_route_can_mean_are_refused_by_name(server, request_head, status, code):
    async with Client(server) as client:
        client.send(request_head)
        got, headers, body = await client.response()
        assert (got, json.loads(body)["error"]["code"], headers["connection"]) == (status, code, "close")
        assert "callback" not in body.decode()


async def test_old_clients_need_no_host(server):
    server.route("GET", "/x", lambda exchange: exchange.respond(200, b"ok"))
    async with Client(server) as client:
        client.send("GET /x HTTP/1.0\r\n\r\n")
        assert (await client.response())[0] == 200
