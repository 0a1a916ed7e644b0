"""One timer that a connection's deadline moves away from; and that small writes leave at once."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dynamo.runtime.http import HttpServer
from dynamo.runtime.http.deadline import Deadline


class Calls:
    """Counts, and tells when the first came."""

    def __init__(self) -> None:
        self.count = 0
        self.came = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.came.set()


@pytest.fixture
async def calls() -> Calls:
    return Calls()


async def test_it_passes_once(calls) -> None:
    Deadline(asyncio.get_running_loop(), calls).set(0.001)
    await asyncio.wait_for(calls.came.wait(), 5)
    await asyncio.sleep(0.01)
    assert calls.count == 1


async def test_moved_away_it_passes_later(calls) -> None:
    loop = asyncio.get_running_loop()
    deadline = Deadline(loop, calls)
    start = loop.time()
    deadline.set(0.001)
    deadline.set(0.03)
    await asyncio.wait_for(calls.came.wait(), 5)
    assert loop.time() - start >= 0.028
    assert calls.count == 1


async def test_moved_nearer_it_passes_sooner(calls) -> None:
    deadline = Deadline(asyncio.get_running_loop(), calls)
    deadline.set(60)
    deadline.set(0.001)
    await asyncio.wait_for(calls.came.wait(), 5)
    assert calls.count == 1


@pytest.mark.parametrize("end", ["clear", "close"])
async def test_cleared_it_never_passes(calls, end) -> None:
    loop = asyncio.get_running_loop()
    deadline, other = Deadline(loop, calls), Calls()
    deadline.set(0.001)
    getattr(deadline, end)()
    Deadline(loop, other).set(0.02)
    await asyncio.wait_for(other.came.wait(), 5)
    assert calls.count == 0


async def test_it_can_be_set_again_after_it_was_cleared(calls) -> None:
    deadline = Deadline(asyncio.get_running_loop(), calls)
    deadline.set(0.001)
    deadline.clear()
    deadline.set(0.002)
    await asyncio.wait_for(calls.came.wait(), 5)
    assert calls.count == 1


async def test_connections_do_not_wait_to_fill_their_packets() -> None:
    server = HttpServer()
    options = []

    def handle(exchange) -> None:
        (connection,) = server.connections
        sock = connection._transport.get_extra_info("socket")
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        exchange.respond(200, b"")

    server.route("GET", "/", handle)
    port = await server.listen("127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    while not options:
        await asyncio.sleep(0.001)
    writer.close()
    await server.close()
    assert all(options)
