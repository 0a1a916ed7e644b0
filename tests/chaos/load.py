"""Streams under way while something dies: each is compared with what it must say, and what happened is counted.

The workers are echo engines, so the right answer to a prompt is the prompt, with as many tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

#: Clients that ask at once.
STREAMS = 50
#: A stream that says nothing for this long is broken.
SILENCE_SECONDS = 60.0
#: A wait for new text that a reader would notice.
STALL_SECONDS = 0.2
WORDS = [
    "river",
    "stone",
    "fox",
    "owl",
    "garden",
    "lamp",
    "tower",
    "castle",
    "green",
    "blue",
    "bear",
    "frog",
    "market",
    "kite",
]


@dataclass
class Stream:
    """One request and what came of it."""

    prompt: str
    began: float
    status: int = 0
    text: str = ""
    error: str = ""
    finish_reason: str | None = None
    done: bool = False
    ended: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    arrivals: list[float] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the client was told that it is."""
        return self.done and not self.error and self.finish_reason == "stop"

    @property
    def right(self) -> bool:
        """Whether it says what it must."""
        return self.text == self.prompt and self.completion_tokens == self.prompt_tokens

    def gap_seconds(self) -> float:
        """The longest wait for new text, from the request on."""
        times = [self.began, *self.arrivals]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def take(self, event: bytes, now: float) -> None:
        """One server-sent event."""
        if event == b"[DONE]":
            self.done = True
            return
        body = json.loads(event)
        if "error" in body:
            self.error = body["error"]["message"]
            return
        if body.get("usage"):
            self.prompt_tokens = body["usage"]["prompt_tokens"]
            self.completion_tokens = body["usage"]["completion_tokens"]
        for choice in body["choices"]:
            if choice["text"]:
                self.text += choice["text"]
                self.arrivals.append(now)
            self.finish_reason = choice["finish_reason"] or self.finish_reason


@dataclass
class Report:
    """What a run came to."""

    begun: int
    completed: int
    broken: int
    wrong: int
    tokens_lost: int
    tokens_doubled: int
    longest_gap_seconds: float
    recovered_seconds: float
    """From the fault until no stream was stalled any more; 0 when none was."""
    reasons: list[str]

    def counts(self) -> tuple[int, int, int, int]:
        """Broken, wrong, tokens lost and tokens doubled: all zero when all is well."""
        return self.broken, self.wrong, self.tokens_lost, self.tokens_doubled

    def row(self) -> list[str]:
        """Cells of the table at the end of the run."""
        numbers = [self.begun, self.completed, self.broken, self.wrong, self.tokens_lost, self.tokens_doubled]
        return [*map(str, numbers), f"{self.longest_gap_seconds:.2f}", f"{self.recovered_seconds:.2f}"]


#: Names of the cells of `Report.row`.
COLUMNS = ["begun", "completed", "broken", "wrong", "lost", "doubled", "longest gap s", "recovered s"]


class Load:
    """`streams` clients, each asking again as soon as it is answered, spread over `urls`."""

    def __init__(self, urls: Sequence[str], *, streams: int = STREAMS, words: int = 30, model: str = "echo") -> None:
        self._addresses = [(split.hostname or "", split.port or 80) for split in map(urlsplit, urls)]
        self._words = words
        self._model = model
        self._count = streams
        self._random = random.Random(7)
        self._stopping = False
        self._fault: float | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.streams: list[Stream] = []

    def start(self) -> None:
        for number in range(self._count):
            address = self._addresses[number % len(self._addresses)]
            self._tasks.append(asyncio.create_task(self._ask_again_and_again(address)))

    async def abandon(self) -> None:
        """Leave everything as it is: the test is over, well or not."""
        self._stopping = True  # before Python 3.12 `wait_for` may swallow a cancellation
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until_all_stream(self, seconds: float = 30.0) -> None:
        """Return when every client is in the middle of an answer."""
        await self.until(lambda: sum(bool(s.arrivals) for s in self.open_streams()) == self._count, seconds)

    async def until_completed(self, more: int, seconds: float = 60.0) -> None:
        """Return when `more` streams than now are complete."""
        wanted = more + sum(stream.complete for stream in self.streams)
        await self.until(lambda: sum(stream.complete for stream in self.streams) >= wanted, seconds)

    async def until(self, condition, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {self.report()}"
            await asyncio.sleep(0.01)

    def open_streams(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.ended is None]

    def fault(self) -> None:
        """Something is being broken now."""
        self._fault = time.monotonic()

    async def finish(self) -> Report:
        """Let what is open end, and report."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        return self.report()

    def report(self) -> Report:
        complete = [stream for stream in self.streams if stream.complete]
        failed = [stream for stream in self.streams if stream.ended is not None and not stream.complete]
        return Report(
            begun=len(self.streams),
            completed=len(complete),
            broken=len(failed),
            wrong=sum(not stream.right for stream in complete),
            tokens_lost=sum(max(0, stream.prompt_tokens - stream.completion_tokens) for stream in complete),
            tokens_doubled=sum(max(0, stream.completion_tokens - stream.prompt_tokens) for stream in complete),
            longest_gap_seconds=max((stream.gap_seconds() for stream in complete), default=0.0),
            recovered_seconds=self._recovered_seconds(),
            reasons=sorted({stream.error or f"status {stream.status}, {stream.finish_reason}" for stream in failed}),
        )

    def _recovered_seconds(self) -> float:
        fault = self._fault
        if fault is None:
            return 0.0
        stalls = sorted(
            (earlier, later)
            for stream in self.streams
            for earlier, later in itertools.pairwise((stream.began, *stream.arrivals))
            if later > fault and later - earlier > STALL_SECONDS
        )
        recovered = fault
        for earlier, later in stalls:
            if earlier > recovered + STALL_SECONDS:
                break  # all streams flowed in between: this is another story
            recovered = max(recovered, later)
        return recovered - fault

    async def _ask_again_and_again(self, address: tuple[str, int]) -> None:
        while not self._stopping:
            words = [f"{self._random.choice(WORDS)}{self._random.randrange(100)}" for _ in range(self._words)]
            stream = Stream(" ".join(words), time.monotonic())
            self.streams.append(stream)
            try:
                await self._ask(address, stream)
            except (OSError, EOFError, asyncio.TimeoutError) as error:
                stream.error = f"{type(error).__name__} {error}".strip()
            stream.ended = time.monotonic()
            if not stream.complete:
                await asyncio.sleep(0.05)  # whatever is broken, a storm of requests would not mend it

    async def _ask(self, address: tuple[str, int], stream: Stream) -> None:
        async with _request(*address, self._body(stream.prompt)) as reader:
            stream.status = int((await reader.readline()).split()[1])
            while line := await asyncio.wait_for(reader.readline(), SILENCE_SECONDS):
                if line.startswith(b"data: "):
                    stream.take(line[6:].strip(), time.monotonic())
                elif stream.status != 200 and line.startswith(b"{"):
                    stream.error = f"{stream.status}: {json.loads(line)['error']['message']}"
        if not stream.done and not stream.error:
            stream.error = "the connection ended before the answer did"

    def _body(self, prompt: str) -> bytes:
        options = {"include_usage": True}
        return json.dumps(
            {"model": self._model, "prompt": prompt, "max_tokens": 2000, "stream": True, "stream_options": options}
        ).encode()


@contextlib.asynccontextmanager
async def _request(host: str, port: int, body: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """A response as bare lines, chunk sizes among them: whole events never straddle the server's chunks."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    try:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        )
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
