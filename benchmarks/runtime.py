"""The request plane alone: tokens per second and CPU per token of each side, beside a bare uvloop socket.

Two processes, as a worker and a frontend would be. The worker encodes one `LLMEngineOutput` per stream and step, one
step per event-loop pass, and the frontend decodes every one. The bare socket moves as many bytes per step, and nobody
makes or reads them: what remains is the price of streams, credit and msgpack.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, cast

import msgspec

from benchmarks.harness.measure import Sample
from benchmarks.harness.rows import Options, Row
from dynamo.errors import DynamoError
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import LLMEngineOutput
from dynamo.protocols.planes import PlaneOptions, RequestPlane, StreamWriter
from dynamo.runtime.client import stream_items
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.request_plane.frames import ITEMS, encode_frames

__all__ = ["run"]

STREAMS = (1, 8, 64, 256)
#: Most CPU per token and side, in microseconds, at `BAR_STREAMS` streams (on the 2-core reference machine).
BAR_MICROSECONDS = 2.0
BAR_STREAMS = 64
FLOOR = "bare uvloop socket"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LLMEngineOutput).decode


class Run(NamedTuple):
    """One run: tokens per second, and CPU per token of each side."""

    per_second: float
    microseconds: dict[str, float]


def run(options: Options) -> Iterator[Row]:
    """Rows for 1, 8, 64 and 256 streams."""
    tokens, rounds = (40_000, 3) if options.quick else (200_000, 7)
    with _process(_work) as worker:
        addresses = worker.recv()
        for streams in STREAMS:
            with _process(_ask, addresses, streams, tokens // streams, rounds) as frontend:
                plane, floor = frontend.recv()
            yield from _rows(streams, plane, floor)


def _rows(streams: int, plane: list[Run], floor: list[Run]) -> Iterator[Row]:
    label = f"{streams} stream{'s' if streams > 1 else ''}"
    rate, base = (Sample.of([one.per_second / 1000 for one in runs]) for runs in (plane, floor))
    yield _row(f"{label}, tokens", "k tokens/s", rate, FLOOR, base.median)
    for side in ("worker", "frontend"):
        cost, base = (Sample.of([one.microseconds[side] for one in runs]) for runs in (plane, floor))
        yield _row(f"{label}, CPU of the {side}", "us/token", cost, FLOOR, base.median)
        if streams == BAR_STREAMS:
            yield _row(f"{label}, CPU of the {side}, bar", "us/token", cost, "2 us a token", BAR_MICROSECONDS, bar=1.0)


def _row(name: str, unit: str, sample: Sample, reference: str, its_value: float, bar: float | None = None) -> Row:
    return Row(
        name=name,
        value=sample.median,
        low=sample.low,
        high=sample.high,
        unit=unit,
        better="lower" if unit == "us/token" else "higher",
        reference=reference,
        reference_value=its_value,
        bar=bar,
    )


@contextmanager
def _process(side: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Iterator[Connection]:
    """Run `side` in a process of its own, on uvloop; it gets a connection to us and `arguments`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(side, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


def _main(side: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    import uvloop

    uvloop.run(side(*arguments))


# The worker's process


async def _work(parent: Connection) -> None:
    """Serve the plane and the bare socket; never ends by itself."""
    plane = create_request_plane("tcp", PlaneOptions())
    server = await plane.serve(1)
    steps = _Steps()
    server.add_handler("bench.generate", steps.handle)
    server.add_handler("bench.cpu", _tell_cpu)
    floor = await asyncio.get_running_loop().create_server(_FloorServer, "127.0.0.1", 0)
    parent.send((server.transports, floor.sockets[0].getsockname()[1]))
    await asyncio.Event().wait()


def _tell_cpu(payload: bytes, context: RequestContext, writer: StreamWriter) -> None:  # noqa: ARG001
    writer.send(_encode(time.process_time()))
    writer.end()


class _Steps:
    """An engine of steps: every open stream gets one token per event-loop pass."""

    def __init__(self) -> None:
        self._writers: list[StreamWriter] = []
        self._task: asyncio.Task[None] | None = None

    def handle(self, payload: bytes, context: RequestContext, writer: StreamWriter) -> None:  # noqa: ARG002
        """Begin once all streams of a run are open; the payload says how many, and the tokens of each."""
        streams, tokens = msgspec.msgpack.decode(payload, type=tuple[int, int])
        self._writers.append(writer)
        if len(self._writers) == streams:
            writers, self._writers = self._writers, []
            self._task = asyncio.get_running_loop().create_task(self._run(writers, tokens))

    async def _run(self, writers: list[StreamWriter], tokens: int) -> None:
        for step in range(tokens):
            for writer in writers:
                writer.send(_encode(LLMEngineOutput([step], step=step)))
            await asyncio.sleep(0)
            while not writers[-1].writable:
                await _writable(writers[-1])
        for writer in writers:
            writer.end()


async def _writable(writer: StreamWriter) -> None:
    event = asyncio.Event()
    writer.on_writable(event.set)
    await event.wait()


class _FloorServer(asyncio.Protocol):
    """Writes what it is asked for: a number of steps and the bytes of each, as two 4-byte integers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._writable = asyncio.Event()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        steps, size = (int.from_bytes(data[start : start + 4], "little") for start in (0, 4))
        self._task = asyncio.get_running_loop().create_task(self._write(steps, bytes(size)))

    async def _write(self, steps: int, step: bytes) -> None:
        for _ in range(steps):
            self._transport.write(step)
            await asyncio.sleep(0)
            await self._writable.wait()


# The frontend's process


async def _ask(
    parent: Connection, addresses: tuple[dict[str, str], int], streams: int, tokens: int, rounds: int
) -> None:
    """Measure plane and bare socket in turn; the first round does not count."""
    transports, floor_port = addresses
    plane = create_request_plane("tcp", PlaneOptions())
    frontend = _Frontend(plane, transports)
    items = [(ITEMS, number + 1, [_encode(LLMEngineOutput([tokens], step=tokens))]) for number in range(streams)]
    step_bytes = len(encode_frames(items, 1 << 30))
    runs: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(rounds + 1):
        runs[0].append(await frontend.measure(frontend.stream(streams, tokens), streams * tokens))
        runs[1].append(await frontend.measure(_receive(floor_port, tokens, step_bytes), streams * tokens))
    parent.send((runs[0][1:], runs[1][1:]))
    await plane.close()


class _Frontend:
    """The asking side."""

    def __init__(self, plane: RequestPlane, transports: dict[str, str]) -> None:
        self._plane = plane
        self._transports = transports

    async def measure(self, work: Coroutine[Any, Any, None], tokens: int) -> Run:
        """Time `work`, and the CPU that both processes spend on it."""
        worker, frontend, start = await self._worker_cpu(), time.process_time(), time.perf_counter()
        await work
        seconds, frontend = time.perf_counter() - start, time.process_time() - frontend
        worker = await self._worker_cpu() - worker
        return Run(tokens / seconds, {"worker": worker / tokens * 1e6, "frontend": frontend / tokens * 1e6})

    async def stream(self, streams: int, tokens: int) -> None:
        """One run: open all streams and read them to their end."""
        payload = _encode((streams, tokens))
        sinks = [_CountingSink() for _ in range(streams)]
        for number, sink in enumerate(sinks):
            self._plane.send(self._endpoint("generate"), payload, sink, Context(f"stream-{number}"))
        for sink in sinks:
            assert await sink.ended == tokens

    async def _worker_cpu(self) -> float:
        async for seconds in stream_items(self._plane, self._endpoint("cpu"), b"", Context("cpu"), float):
            return float(seconds)
        raise DynamoError("the worker's process did not tell its CPU time")

    def _endpoint(self, name: str) -> InstanceRecord:
        return InstanceRecord("bench", "bench", name, 1, self._transports)


class _CountingSink:
    """Implements `dynamo.protocols.planes.ResponseSink`: decodes, as a frontend does, and counts."""

    def __init__(self) -> None:
        self._tokens = 0
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_items(self, items: list[bytes]) -> None:
        for item in items:
            self._tokens += len(_decode(item).token_ids)

    def on_end(self) -> None:
        self.ended.set_result(self._tokens)

    def on_error(self, error: DynamoError) -> None:
        self.ended.set_exception(error)


async def _receive(port: int, steps: int, step_bytes: int) -> None:
    """One run over the bare socket."""
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(lambda: _FloorClient(steps * step_bytes), "127.0.0.1", port)
    transport.write(steps.to_bytes(4, "little") + step_bytes.to_bytes(4, "little"))
    await client.ended
    transport.close()


class _FloorClient(asyncio.Protocol):
    """Counts bytes."""

    def __init__(self, expected: int) -> None:
        self._missing = expected
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if not self._missing:
            self.ended.set_result(None)
