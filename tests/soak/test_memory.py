"""Very many short requests through two frontends and four workers: every process stays as large as it was."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.e2e.processes import deployment

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(7200)]

REQUESTS = int(os.environ.get("DYNAMO_SOAK_REQUESTS", "5000"))
#: With fewer, caches are still filling and the interpreter's arenas settling.
REQUESTS_TO_JUDGE = 50_000
CLIENTS = 32
GROWTH_LIMIT = 0.05
#: One request in so many is given up after its first bytes.
ABANDON_EVERY = 20
#: One request in so many is a streamed chat; 1 makes them all chats.
CHAT_EVERY = int(os.environ.get("DYNAMO_SOAK_CHAT_EVERY", "3"))


class Soak:
    """Clients with kept-alive connections, and what became of their requests."""

    def __init__(self, ports: list[int], requests: int) -> None:
        self._ports = ports
        self._numbers = iter(range(requests))
        self.answered = 0
        self.abandoned = 0
        self.failed: list[str] = []

    @property
    def ended(self) -> int:
        return self.answered + self.abandoned + len(self.failed)

    async def client(self, index: int) -> None:
        port = self._ports[index % len(self._ports)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in self._numbers:
            if number % CHAT_EVERY == 1 % CHAT_EVERY:
                await self._chat(number, reader, writer)
                continue
            abandon = number % ABANDON_EVERY == 0
            prompt = f"request {number} asks"
            body = {"model": "echo", "prompt": prompt, "stream": abandon, "ignore_eos": abandon}
            data = json.dumps({**body, "max_tokens": 2000 if abandon else 16}).encode()
            writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
            head = await reader.readuntil(b"\r\n\r\n")
            if abandon:
                writer.close()
                await writer.wait_closed()
                self.abandoned += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            if "choices" in answer and prompt.startswith(answer["choices"][0]["text"]):
                self.answered += 1
            else:
                self.failed.append(json.dumps(answer))
        writer.close()
        await writer.wait_closed()

    async def _chat(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A streamed chat, long enough for the cache of tokenized beginnings, with a beginning that others share."""
        messages = [
            {"role": "system", "content": f"rule {number % 50}. " * 150},
            {"role": "user", "content": f"chat {number}"},
        ]
        data = json.dumps({"model": "echo", "messages": messages, "stream": True, "max_tokens": 16}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        await reader.readuntil(b"\r\n\r\n")
        events = await reader.readuntil(b"0\r\n\r\n")
        if b'"finish_reason":"length"' in events and b"[DONE]" in events:
            self.answered += 1
        else:
            self.failed.append(events.decode())


@pytest.fixture
def system(tmp_path) -> Iterator:
    with deployment(tmp_path) as made:
        # Small enough a cache that it is full, and evicts, before memory is measured.
        workers = [made.worker("--num-blocks", "512", env={"DYN_LOG": "warning"}) for _ in range(4)]
        frontends = [made.frontend(env={"DYN_LOG": "warning"}) for _ in range(2)]
        for frontend in frontends:
            made.until_serving(frontend, workers=4)
        yield frontends, workers


async def test_memory_stays_flat(system):
    frontends, workers = system
    soak = Soak([frontend.port for frontend in frontends], REQUESTS)
    names = [*(f"frontend {n}" for n in range(len(frontends))), *(f"worker {n}" for n in range(len(workers)))]
    processes = [psutil.Process(process.pid) for process in (*frontends, *workers)]
    samples: list[list[float]] = []
    start = time.monotonic()
    clients = asyncio.gather(*(soak.client(index) for index in range(CLIENTS)))
    for part in itertools.count(1):
        while soak.ended < part * REQUESTS // 100 and not clients.done():
            await asyncio.sleep(0.01)
        samples.append([process.memory_info().rss / 2**20 for process in processes])
        if clients.done():
            break
    await clients
    seconds = time.monotonic() - start
    growth = {}
    print(f"\n{soak.answered} answers, {soak.abandoned} abandoned, {len(soak.failed)} failed, {seconds:.0f} s")
    for name, sizes in zip(names, zip(*samples, strict=True), strict=True):
        tenth = len(sizes) // 10
        early, late = statistics.median(sizes[tenth : 2 * tenth]), statistics.median(sizes[-tenth:])
        growth[name] = late / early - 1
        print(
            f"{name}: {sizes[0]:.1f} MiB at first, {early:.1f} after a tenth, {late:.1f} at the end: {growth[name]:+.1%}"
        )
    assert soak.failed == []
    assert soak.answered + soak.abandoned == REQUESTS
    for worker in workers:
        assert worker.metric("dynamo_component_running_requests") == 0
        assert worker.metric("dynamo_component_used_kv_blocks") == 0
    for frontend in frontends:
        assert frontend.metric("dynamo_frontend_inflight_requests") == 0
    if REQUESTS >= REQUESTS_TO_JUDGE:
        assert {name: ratio for name, ratio in growth.items() if ratio > GROWTH_LIMIT} == {}
