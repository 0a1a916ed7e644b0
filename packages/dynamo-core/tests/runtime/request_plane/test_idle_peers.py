"""Thousands of connections that say nothing: dropped for their silence, while those that work go on."""

from __future__ import annotations

import asyncio
import resource
import socket

import pytest

from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.server import iterator_handler

IDLE = 5_000


async def count(request, context):
    for number in range(request):
        yield number


@pytest.mark.slow
async def test_idle_connections_are_dropped_and_do_not_disturb(pair_class, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * IDLE + 1000:
        pytest.skip(f"needs {2 * IDLE + 1000} file descriptors; this process may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * IDLE + 1000), hard))
    pair = await pair_class("tcp", PlaneOptions(connect_timeout_seconds=3)).start()
    pair.serve(iterator_handler(count, int))
    host, port = pair.server.transports["tcp"].split(":")
    idle = []
    try:
        for number in range(IDLE):
            idle.append(socket.create_connection((host, int(port))))
            if not number % 100:
                await asyncio.sleep(0)
        sink, _ = pair.send(b"\x64")
        await sink.wait()
        assert len(sink.items) == 100
        assert len(pair.server.connections) > 1

        async def only_ours():
            while len(pair.server.connections) > 1:
                await asyncio.sleep(0.05)

        await asyncio.wait_for(only_ours(), 60)
        assert "no handshake" in caplog.text
        again, _ = pair.send(b"\x05")
        await again.wait()
        assert len(again.items) == 5
    finally:
        for sock in idle:
            sock.close()
        await pair.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
