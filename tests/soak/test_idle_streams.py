"""Ten thousand streams that are open at once and wait for their models: one frontend holds them in bounded memory."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Iterator

import psutil
import pytest

from tests.e2e.processes import deployment, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(600)]

STREAMS = int(os.environ.get("DYNAMO_IDLE_STREAMS", "10000"))
LIMIT_BYTES = 1 << 30
#: So many requests are begun at a time, as from a crowd that comes, not as one burst of connections.
AT_ONCE = 500


@pytest.fixture
def room_for_connections() -> Iterator[None]:
    """File descriptors for all of them, here and in the processes that are started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = STREAMS + 1000
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{STREAMS} connections need {needed} file descriptors, ulimit -n allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def system(tmp_path, room_for_connections):
    with deployment(tmp_path, {"DYN_LOG": "warning"}) as made:
        # Each stream has its first token at once and waits an hour for the second.
        worker = made.worker(
            "--tokens-per-second", "0.0003", "--engine-request-limit", "20000", "--num-blocks", "200000"
        )
        frontend = made.frontend("--max-inflight-requests", "20000", "--drain-grace-seconds", "0")
        made.until_serving(frontend)
        yield frontend, worker


async def open_stream(port, number, gate):
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        messages = [{"role": "user", "content": f"stream {number} waits for a long answer"}]
        body = json.dumps({"model": "echo", "messages": messages, "stream": True, "max_tokens": 100}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readuntil(b"\n\n")
        return writer


async def test_idle_streams_take_bounded_memory(system):
    frontend, worker = system
    process = psutil.Process(frontend.pid)
    before = process.memory_info().rss
    gate = asyncio.Semaphore(AT_ONCE)
    writers = await asyncio.gather(*(open_stream(frontend.port, number, gate) for number in range(STREAMS)))
    assert frontend.metric("dynamo_frontend_inflight_requests") == STREAMS
    size = process.memory_info().rss
    print(
        f"\n{STREAMS} open idle streams: {size / 2**20:.0f} MiB, {before / 2**20:.0f} before; "
        f"{(size - before) / STREAMS / 1024:.1f} KiB each"
    )
    assert size <= LIMIT_BYTES
    for writer in writers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in writers))
    wait_until(lambda: not frontend.metric("dynamo_frontend_inflight_requests"), "the end of all", frontend)
    wait_until(lambda: not worker.metric("dynamo_component_running_requests"), "the end of work", worker)
