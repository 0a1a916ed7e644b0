"""The load: a lean HTTP client in a process of its own, so that nothing of it is counted as the server's work.

`benchmarks.serving.systems.Client` starts it and gives it one JSON line per phase; it makes the requests, says so by a
line, waits for one, and answers with what came of them: no server idles, on its CPU account, while prompts are made. It
knows just enough HTTP to send prepared requests and to count events and tell when a response is complete.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import uvloop
from tokenizers import Tokenizer

from benchmarks.serving.model import MODEL, Corpus

__all__ = ["Outcome", "Phase"]

_END = b"0\r\n\r\n"


class Phase(msgspec.Struct):
    """One phase of load: so many requests over so many connections, or at a rate."""

    port: int
    requests: int
    clients: int = 1
    isl: int = 64
    osl: int = 1
    stream: bool = False
    per_second: float = 0.0
    """Poisson arrivals; 0: each client sends its next request when it has the answer."""
    seed: int = 0
    turns: int = 1
    """Messages of the user in each prompt: the last one is short, the first has the length of `isl`."""
    ignore_eos: bool = False
    """For real models: each answer has `osl` tokens, whatever the model thinks."""


class Outcome(msgspec.Struct):
    """What the client saw."""

    seconds: float
    chunks: int
    """Server-sent events, the end mark included."""
    failed: int
    failure: str
    """The end of what one failed request was answered with."""
    first_ms: list[float]
    """Time to the first byte of each body, ascending."""


class _Connection(asyncio.Protocol):
    """One kept-alive connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._tail = b""
        self._missing = -1
        self._sent_at = 0.0
        self.first_ms = 0.0
        self.chunks = 0
        self.status = b""
        self.last = b""
        self._done: Callable[[Exception | None], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("the server closed the connection"))

    def send(self, request: bytes, done: Callable[[Exception | None], None]) -> None:
        """Send one request; `done` is called when its whole response is there, or with what went wrong."""
        assert self.transport is not None
        self._tail, self._missing, self.status, self.first_ms = b"", -1, b"", 0.0
        self._done = done
        self._sent_at = time.perf_counter()
        self.transport.write(request)

    def _end(self, error: Exception | None = None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(error)

    def data_received(self, data: bytes) -> None:
        if not self.status:
            data = self._tail + data
            head, found, body = data.partition(b"\r\n\r\n")
            if not found:
                self._tail = data
                return
            self.status = head.split(b" ", 2)[1]
            lower = head.lower()
            position = lower.find(b"content-length:")
            self._missing = int(lower[position + 15 :].split(b"\r\n", 1)[0]) if position >= 0 else -1
            self._tail, data = b"", body
        self.last = data
        if data and not self.first_ms:
            self.first_ms = (time.perf_counter() - self._sent_at) * 1e3
        if self._missing >= 0:
            self._missing -= len(data)
            ended = self._missing <= 0
        else:
            # An event whose mark is cut by two reads counts with the second one.
            joined = self._tail + data
            self.chunks += joined.count(b"data: ")
            self._tail = joined[-5:]
            ended = joined.endswith(_END)
        if ended:
            self._end()


class _Requests:
    """Prepared requests of one phase, no two alike."""

    def __init__(self, phase: Phase, tokenizer: Tokenizer) -> None:
        self._phase = phase
        self._corpus = Corpus(tokenizer, phase.seed)

    def next(self) -> bytes:
        phase = self._phase
        texts = [("user", self._corpus.text(phase.isl))]
        for turn in range(1, phase.turns):
            texts += [("assistant", f"Answer number {turn}, of a few words."), ("user", f"Question number {turn + 1}?")]
        messages = ",".join(f'{{"role":"{role}","content":"{text}"}}' for role, text in texts)
        options = f'"stream":{"true" if phase.stream else "false"}'
        if phase.ignore_eos:  # not OpenAI's, but all engines know it
            options += ',"ignore_eos":true'
        body = (
            f'{{"model":"{MODEL}","messages":[{messages}],"max_tokens":{phase.osl},"temperature":0.7,{options}}}'
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        return f"{head}{len(body)}\r\n\r\n".encode() + body


class _Run:
    """One phase: without tasks, since the client shares the machine with what it measures."""

    def __init__(self, phase: Phase, requests: Iterator[bytes], connections: list[_Connection]) -> None:
        self._phase = phase
        self._requests = requests
        self._free = connections
        self._unsent = phase.requests
        """Requests that are not due yet."""
        self._due = 0
        """Requests that wait for a free connection."""
        self._open = 0
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self.first_ms: list[float] = []
        self.failures: list[str] = []

    async def run(self) -> None:
        """Send all requests, at the times of the phase, and wait for their answers."""
        if self._phase.per_second:
            arrivals = self._loop.run_in_executor(None, self._arrive)
            await self._over
            await arrivals
        else:
            self._unsent, self._due = 0, self._unsent
            self._send()
            await self._over

    def _arrive(self) -> None:
        # A thread's sleep ends within 0.1 ms. The event loop's timers tick once a millisecond: they would make bursts
        # of what falls due within one.
        rng, due = random.Random(self._phase.seed), time.perf_counter()
        for _ in range(self._phase.requests):
            due += rng.expovariate(self._phase.per_second)
            time.sleep(max(0.0, due - time.perf_counter()))
            self._loop.call_soon_threadsafe(self._one_more)

    def _one_more(self) -> None:
        self._unsent -= 1
        self._due += 1
        self._send()

    def _send(self) -> None:
        while self._due and self._free:
            self._due -= 1
            self._open += 1
            connection = self._free.pop()
            connection.send(next(self._requests), partial(self._done, connection))

    def _done(self, connection: _Connection, error: Exception | None) -> None:
        self._open -= 1
        if error is not None:
            if not self._over.done():
                self._over.set_exception(error)
            return
        self.first_ms.append(connection.first_ms)
        if connection.status != b"200":
            self.failures.append(f"{connection.status.decode()} {connection.last[-300:].decode(errors='replace')}")
        self._free.append(connection)
        self._send()
        if not (self._unsent or self._due or self._open or self._over.done()):
            self._over.set_result(None)


async def _run(phase: Phase, requests: Iterator[bytes]) -> Outcome:
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(_Connection, "127.0.0.1", phase.port))[1] for _ in range(phase.clients)
    ]
    run = _Run(phase, requests, list(connections))
    start = time.perf_counter()
    await run.run()
    seconds = time.perf_counter() - start
    for connection in connections:
        assert connection.transport is not None
        connection.transport.close()
    return Outcome(
        seconds,
        sum(connection.chunks for connection in connections),
        len(run.failures),
        "".join(run.failures[:1]),
        sorted(run.first_ms),
    )


async def _main(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        phase = msgspec.json.decode(line, type=Phase)
        requests = _Requests(phase, tokenizer)
        prepared = [requests.next() for _ in range(phase.requests)]
        print("prepared", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        outcome = await _run(phase, iter(prepared))
        print(json.dumps(msgspec.to_builtins(outcome)), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1])))
