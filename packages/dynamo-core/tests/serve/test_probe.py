import asyncio

import pytest

from dynamo.serve.allocator import free_port
from dynamo.serve.probe import http_get


async def answer_with(data: bytes) -> asyncio.Server:
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}")),
        (b"HTTP/1.1 503 Busy\r\n\r\n", (503, b"")),
        (b"SSH-2.0-OpenSSH\r\n", (0, b"")),
        (b"", (0, b"")),
    ],
)
async def test_status_and_body(data, expected):
    async with await answer_with(data) as server:
        assert await http_get("127.0.0.1", server.sockets[0].getsockname()[1], "/health") == expected


async def test_nobody_listens():
    assert await http_get("127.0.0.1", free_port(), "/health") == (0, b"")


async def test_a_server_that_never_answers():
    released = asyncio.Event()

    async def hang(reader, writer):
        await released.wait()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await http_get("127.0.0.1", port, "/health", timeout_seconds=0.05) == (0, b"")
        released.set()
