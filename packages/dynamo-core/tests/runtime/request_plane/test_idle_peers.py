"""Ten thousand connections that say nothing: dropped for their silence, while those that work go on."""

from __future__ import annotations

import asyncio
import resource
import sys

import pytest

from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.server import iterator_handler

IDLE = 10_000
#: A process of its own, so that neither end needs more descriptors than connections.
HOLDER = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
host, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = [socket.create_connection((host, port)) for _ in range(number)]
print("ready", flush=True)
sys.stdin.read()
"""


async def count(request, context):
    for number in range(request):
        yield number


@pytest.mark.slow
async def test_idle_connections_are_dropped_and_do_not_disturb(pair_class, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + 1000:
        pytest.skip(f"needs {IDLE + 1000} file descriptors; this process may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 1000), hard))
    pair = await pair_class("tcp", PlaneOptions(connect_timeout_seconds=15)).start()
    pair.serve(iterator_handler(count, int))
    host, port = pair.server.transports["tcp"].split(":")
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOLDER,
        host,
        port,
        str(IDLE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await asyncio.wait_for(holder.stdout.readline(), 60) == b"ready\n"
        sink, _ = pair.send(b"\x64")
        await sink.wait()
        assert len(sink.items) == 100
        assert len(pair.server.connections) > IDLE // 2

        async def only_ours():
            while len(pair.server.connections) > 1:
                await asyncio.sleep(0.05)

        await asyncio.wait_for(only_ours(), 90)
        assert "no handshake" in caplog.text
        again, _ = pair.send(b"\x05")
        await again.wait()
        assert len(again.items) == 5
    finally:
        holder.kill()
        await holder.communicate()
        await pair.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
