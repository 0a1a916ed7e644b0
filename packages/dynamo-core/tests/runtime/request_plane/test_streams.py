"""Streams between two real ends, alike over every carrier: order, credit, cancellation, deadlines, lost peers."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from dynamo.errors import (
    CannotConnect,
    Disconnected,
    Draining,
    DynamoError,
    EngineError,
    InvalidRequest,
    RequestTooLarge,
    ResponseTimeout,
    Retry,
)
from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.client import stream_items
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.client import WINDOW_ITEMS
from dynamo.runtime.request_plane.frames import ITEM_OVERHEAD_BYTES
from dynamo.runtime.server import iterator_handler

TIMEOUT = 10.0


async def count(request, context):
    for number in range(request):
        yield number


async def forever(request, context):
    yield 0
    await context.wait_cancelled()
    yield "cancelled"


async def test_items_arrive_in_order_and_the_stream_ends_once(pair):
    pair.serve(iterator_handler(count, int))
    got = [item async for item in stream_items(pair.asking, pair.record, b"\xcd\x03\xe8", Context("r"), int)]
    assert got == list(range(1000))
    assert pair.server.open_streams == 0


async def test_many_streams_share_one_connection(pair):
    pair.serve(iterator_handler(count, int))

    async def one(n):
        return [item async for item in stream_items(pair.asking, pair.record, bytes([n]), Context(str(n)), int)]

    results = await asyncio.gather(*(one(n) for n in range(1, 100)))
    assert results == [list(range(n)) for n in range(1, 100)]
    assert len(pair.server.connections) == 1


async def test_items_of_one_event_loop_pass_travel_in_one_batch(pair):
    def burst(payload, context, writer):
        for number in range(50):
            writer.send(bytes([number]))
        writer.end()

    pair.serve(burst)
    sink, _ = pair.send()
    await sink.wait()
    assert sink.items == [bytes([n]) for n in range(50)]
    assert sink.batches == 1


async def test_a_burst_of_items_above_the_frame_limit_arrives_in_several_frames(make_pair):
    pair = await make_pair(max_frame_bytes=1 << 20)

    def burst(payload, context, writer):
        for number in range(50):
            writer.send(bytes([number]) * 100_000)
        writer.end()

    pair.serve(burst)
    sink, _ = pair.send()
    await sink.wait()
    assert sink.error is None
    assert [item[0] for item in sink.items] == list(range(50))


@pytest.mark.parametrize("excess", [-ITEM_OVERHEAD_BYTES, 1 - ITEM_OVERHEAD_BYTES, 1 << 20], ids=["fits", "1", "1 MiB"])
async def test_an_item_above_the_frame_limit_fails_its_stream_only(make_pair, caplog, excess):
    pair = await make_pair(max_frame_bytes=1 << 20)
    contexts = []

    def burst(payload, context, writer):
        contexts.append(context)
        writer.send(b"before")
        if payload == b"large":
            writer.send(bytes((1 << 20) + excess))
        else:
            context.on_cancel(writer.end)

    pair.serve(burst)
    other, other_stream = pair.send(b"small")
    sink, stream = pair.send(b"large", Context("huge-1"))
    if excess == -ITEM_OVERHEAD_BYTES:
        await asyncio.wait_for(_items(sink, 2), TIMEOUT)
        stream.cancel()
    else:
        await sink.wait()
        assert isinstance(sink.error, EngineError)
        assert sink.error.retry is Retry.NEVER
        assert sink.items == [b"before"]
        assert "request huge-1: the answer has an item of" in caplog.text
        assert contexts[1].cancelled
    await other.begin()
    assert not other.ended.is_set()
    other_stream.cancel()
    await other.wait()
    assert (other.items, other.error) == ([b"before"], None)


async def _items(sink, count):
    while len(sink.items) < count:
        sink.arrived.clear()
        await sink.arrived.wait()


@pytest.mark.parametrize("size", [(1 << 20) - 256, 1 << 20, 2 << 20], ids=["fits", "1 MiB", "2 MiB"])
async def test_a_request_above_the_frame_limit_fails_alone(make_pair, size):
    pair = await make_pair(max_frame_bytes=1 << 20)

    def handler(payload, context, writer):
        writer.send(b"x")
        if payload == b"small":
            context.on_cancel(writer.end)
        else:
            writer.end()

    pair.serve(handler)
    other, other_stream = pair.send(b"small")
    await other.begin()
    sink, _ = pair.send(bytes(size))
    await sink.wait()
    if size < 1 << 20:
        assert (sink.items, sink.error) == ([b"x"], None)
    else:
        assert isinstance(sink.error, RequestTooLarge)
        assert sink.error.retry is Retry.NEVER
    assert not other.ended.is_set()
    other_stream.cancel()
    await other.wait()
    assert other.error is None


class Breaking:
    """A sink with a mistake in `method`."""

    def __init__(self, method):
        self._method = method
        self.told = []
        self.broke = asyncio.Event()
        self.ended = asyncio.Event()

    def on_items(self, items):
        self._take("on_items")

    def on_end(self):
        self._take("on_end")

    def on_error(self, error):
        self._take(error)
        self.ended.set()

    def _take(self, what):
        self.told.append(what)
        if what == self._method or (self._method == "on_error" and isinstance(what, DynamoError)):
            self.broke.set()
            raise KeyError("a reader's mistake")


@pytest.mark.parametrize("method", ["on_items", "on_end", "on_error"])
async def test_a_reader_that_raises_loses_its_own_stream_only(pair, caplog, method):
    cancelled = []

    def handler(payload, context, writer):
        context.on_cancel(lambda: cancelled.append(context.request_id))
        context.on_cancel(writer.end)
        writer.send(b"x")
        if payload == b"on_end":
            writer.end()
        elif payload == b"on_error":
            writer.fail(InvalidRequest("no"))

    pair.serve(handler)
    other, other_stream = pair.send(b"other")
    sink = Breaking(method)
    pair.asking.send(pair.record, method.encode(), sink, Context("broken-1"))
    await asyncio.wait_for(sink.broke.wait(), TIMEOUT)
    if method != "on_error":
        await asyncio.wait_for(sink.ended.wait(), TIMEOUT)
        assert isinstance(sink.told[-1], EngineError)
        assert sink.told[-1].retry is Retry.NEVER
    assert len([told for told in sink.told if isinstance(told, DynamoError)]) == 1
    assert caplog.text.count("KeyError: ") == 1
    assert "the reader of request broken-1 failed" in caplog.text
    again, again_stream = pair.send(b"again")
    await again.begin()
    assert cancelled == (["broken-1"] if method == "on_items" else [])
    assert not other.ended.is_set()
    for stream in (other_stream, again_stream):
        stream.cancel()
    await other.wait()
    assert (other.items, other.error) == ([b"x"], None)
    assert len(pair.server.connections) == 1
    assert "dropping connection" not in caplog.text


async def test_every_reader_is_told_of_a_lost_connection_although_one_raises(pair, caplog):
    pair.serve(lambda payload, context, writer: writer.send(b"x"))
    before, _ = pair.send()
    broken = Breaking("on_error")
    pair.asking.send(pair.record, b"x", broken, Context("broken-2"))
    after, _ = pair.send()
    await after.begin()
    for connection in list(pair.server.connections):
        connection.close()
    await before.wait()
    await after.wait()
    assert broken.broke.is_set()
    assert isinstance(before.error, Disconnected)
    assert isinstance(after.error, Disconnected)
    assert "the reader of request broken-2 failed" in caplog.text


async def test_a_handler_that_raises_when_it_may_write_again_fails_its_stream_only(pair, caplog):
    def handler(payload, context, writer):
        if payload == b"other":
            context.on_cancel(writer.end)
            writer.send(b"x")
            return
        while writer.writable:
            writer.send(b"x")
        writer.on_writable(lambda: 1 // 0)

    pair.serve(handler)
    other, other_stream = pair.send(b"other")
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, EngineError)
    assert "ZeroDivisionError" in caplog.text
    assert "ZeroDivision" not in sink.error.message
    assert not other.ended.is_set()
    other_stream.cancel()
    await other.wait()
    assert other.error is None


async def test_a_handler_error_arrives_with_its_class_and_fields(pair):
    async def refuse(request, context):
        raise InvalidRequest("too long", param="messages", reason="context_length_exceeded")
        yield

    pair.serve(iterator_handler(refuse))
    sink, _ = pair.send(b"\xc0")
    await sink.wait()
    assert isinstance(sink.error, InvalidRequest)
    assert (sink.error.message, sink.error.param, sink.error.reason) == (
        "too long",
        "messages",
        "context_length_exceeded",
    )


async def test_a_foreign_exception_is_an_engine_error_and_spares_the_connection(pair, caplog):
    async def crash(request, context):
        yield 1
        raise ZeroDivisionError("oops")

    pair.serve(iterator_handler(crash))
    with caplog.at_level(logging.ERROR):
        sink, _ = pair.send(b"\xc0")
        await sink.wait()
    assert isinstance(sink.error, EngineError)
    assert sink.error.message == "internal error; the worker's log has the details"
    assert "ZeroDivisionError: oops" in caplog.text
    pair.serve(iterator_handler(count, int))
    again, _ = pair.send(b"\x02")
    await again.wait()
    assert again.error is None
    assert len(again.items) == 2


async def test_a_payload_of_the_wrong_type_fails_its_stream_only(pair, caplog):
    pair.serve(iterator_handler(count, int))
    sink, _ = pair.send(b"\xa1x")
    await sink.wait()
    assert isinstance(sink.error, InvalidRequest)
    assert len(pair.server.connections) == 1


async def test_an_unknown_endpoint_is_refused(pair):
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, InvalidRequest)
    assert "worker.generate" in sink.error.message


async def test_cancelling_the_context_reaches_the_handler(pair):
    pair.serve(iterator_handler(forever))
    context = Context("r")
    sink, _ = pair.send(b"\xc0", context)
    await sink.begin()
    context.cancel()
    await sink.wait()
    assert sink.items[-1] == b"\xa9cancelled"
    assert sink.error is None


async def test_a_handler_that_ignores_cancellation_is_closed(pair):
    closed = asyncio.Event()

    async def deaf(request, context):
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            closed.set()

    pair.serve(iterator_handler(deaf))
    context = Context("r")
    sink, _ = pair.send(b"\xc0", context)
    await sink.begin()
    context.cancel()
    await sink.wait()
    assert closed.is_set()


async def test_a_deadline_ends_the_stream_and_cancels_the_handler(pair):
    cancelled = asyncio.Event()

    async def slow(request, context):
        assert context.deadline_unix_seconds is not None
        await context.wait_cancelled()
        cancelled.set()
        yield 0

    pair.serve(iterator_handler(slow))
    sink, _ = pair.send(b"\xc0", Context("r", deadline_unix_seconds=time.time() + 0.05))
    await sink.wait()
    assert isinstance(sink.error, ResponseTimeout)
    await asyncio.wait_for(cancelled.wait(), TIMEOUT)


async def test_a_paused_reader_holds_the_writer_back(pair):
    produced = []

    async def eager(request, context):
        for number in range(5000):
            produced.append(number)
            yield number

    pair.serve(iterator_handler(eager))
    sink, stream = pair.send(b"\xc0")
    stream.pause()
    await sink.begin()
    for _ in range(200):
        await asyncio.sleep(0)
    held_at = len(produced)
    assert held_at <= 257
    stream.resume()
    await sink.wait()
    assert len(sink.items) == 5000


async def test_draining_refuses_new_streams_and_lets_old_ones_end(pair):
    release = asyncio.Event()

    async def held(request, context):
        yield 1
        await release.wait()
        yield 2

    pair.serve(iterator_handler(held))
    old, _ = pair.send(b"\xc0")
    await old.begin()
    pair.server.stop_accepting()
    new, _ = pair.send(b"\xc0")
    await new.wait()
    assert isinstance(new.error, Draining)
    release.set()
    await old.wait()
    assert (old.items, old.error) == ([b"\x01", b"\x02"], None)


async def test_losing_the_server_fails_open_streams_and_the_next_connects_anew(pair):
    pair.serve(iterator_handler(forever))
    sink, _ = pair.send(b"\xc0")
    await sink.begin()
    for connection in list(pair.server.connections):
        connection.close()
    await sink.wait()
    assert isinstance(sink.error, Disconnected)
    pair.serve(iterator_handler(count, int))
    again, _ = pair.send(b"\x03")
    await again.wait()
    assert len(again.items) == 3


async def test_losing_the_client_cancels_its_requests(pair):
    cancelled = asyncio.Event()

    async def watch(request, context):
        yield 0
        await context.wait_cancelled()
        cancelled.set()

    pair.serve(iterator_handler(watch))
    sink, _ = pair.send(b"\xc0")
    await sink.begin()
    await pair.asking.close()
    await asyncio.wait_for(cancelled.wait(), TIMEOUT)
    assert isinstance(sink.error, Disconnected)


async def test_an_instance_without_an_address_is_cannot_connect(pair):
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {})
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)


@pytest.mark.parametrize(("server", "client"), [(b"a", b"b"), (b"a", b""), (b"", b"b")])
async def test_both_sides_must_know_the_secret(make_pair, server, client, caplog):
    pair = await make_pair(secret=server, asking={"secret": client})
    pair.serve(iterator_handler(count, int))
    sink, _ = pair.send(b"\x01")
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)
    assert "secret" in sink.error.message


async def test_too_many_streams_are_refused_as_overload(make_pair):
    pair = await make_pair(max_streams=2)
    pair.serve(iterator_handler(forever))
    sinks = [pair.send(b"\xc0", Context(str(n))) for n in range(3)]
    await sinks[2][0].wait()
    assert sinks[2][0].error.code == "overloaded"
    assert sinks[2][0].error.retry_after_seconds


@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
async def test_a_paused_stream_that_is_cancelled_holds_nothing_back(pair, ended):
    writers = []

    def handler(payload, context, writer):
        writers.append(writer)
        for _ in range(WINDOW_ITEMS + 10):
            writer.send(b"x")
        if ended:
            writer.end()
        else:
            context.on_cancel(writer.end)

    pair.serve(handler)
    sink, stream = pair.send()
    stream.pause()
    await sink.begin()
    stream.cancel()
    await sink.wait()
    assert sink.error is None
    assert len(sink.items) <= WINDOW_ITEMS
    assert pair.server.open_streams == 0
