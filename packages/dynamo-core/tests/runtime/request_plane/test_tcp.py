"""The tcp request plane between two real ends: streams, credit, cancellation, deadlines, hostile and lost peers."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest

from dynamo.errors import (
    CannotConnect,
    ConfigError,
    Disconnected,
    Draining,
    DynamoError,
    EngineError,
    InvalidRequest,
    ResponseTimeout,
)
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.client import stream_items
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.request_plane.frames import encode_frames
from dynamo.runtime.server import iterator_handler

TIMEOUT = 10.0


class Gathering:
    """A sink that remembers, with an event at its end."""

    def __init__(self):
        self.items: list[bytes] = []
        self.batches = 0
        self.error: DynamoError | None = None
        self.ended = asyncio.Event()
        self.arrived = asyncio.Event()

    def on_items(self, items):
        self.items += items
        self.batches += 1
        self.arrived.set()

    def on_end(self):
        self.ended.set()

    def on_error(self, error):
        self.error = error
        self.ended.set()

    async def wait(self):
        await asyncio.wait_for(self.ended.wait(), TIMEOUT)


class Pair:
    """A serving and an asking plane of one process."""

    def __init__(self, options: PlaneOptions, asking: PlaneOptions | None = None):
        self.serving = create_request_plane("tcp", options)
        self.asking = create_request_plane("tcp", asking or options)

    async def start(self):
        self.server = await self.serving.serve(7)
        self.record = InstanceRecord("ns", "worker", "generate", 7, {"tcp": self.server.address})
        return self

    def serve(self, handler):
        self.server.add_handler("worker.generate", handler)

    def send(self, payload=b"x", context=None):
        sink = Gathering()
        stream = self.asking.send(self.record, payload, sink, context or Context("r"))
        return sink, stream

    async def close(self):
        await self.asking.close()
        await self.serving.close()


@pytest.fixture
async def pair():
    made = await Pair(PlaneOptions(secret=b"s3cret")).start()
    yield made
    await made.close()


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


async def test_unix_sockets_serve_the_same(tmp_path):
    pair = await Pair(PlaneOptions(host="unix", state_directory=tmp_path)).start()
    pair.serve(iterator_handler(count, int))
    assert [i async for i in stream_items(pair.asking, pair.record, b"\x05", Context("r"), int)] == [0, 1, 2, 3, 4]
    await pair.close()
    assert list(tmp_path.iterdir()) == []


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
    assert "ZeroDivisionError: oops" in sink.error.message
    pair.serve(iterator_handler(count, int))
    again, _ = pair.send(b"\x02")
    await again.wait()
    assert again.error is None
    assert len(again.items) == 2


async def test_a_payload_of_the_wrong_type_fails_its_stream_only(pair, caplog):
    pair.serve(iterator_handler(count, int))
    sink, _ = pair.send(b"\xa1x")
    await sink.wait()
    assert isinstance(sink.error, EngineError)
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
    await asyncio.wait_for(sink.arrived.wait(), TIMEOUT)
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
    await asyncio.wait_for(sink.arrived.wait(), TIMEOUT)
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
    sink = Gathering()
    stream = pair.asking.send(pair.record, b"\xc0", sink, Context("r"))
    stream.pause()
    await asyncio.wait_for(sink.arrived.wait(), TIMEOUT)
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
    await asyncio.wait_for(old.arrived.wait(), TIMEOUT)
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
    await asyncio.wait_for(sink.arrived.wait(), TIMEOUT)
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
    await asyncio.wait_for(sink.arrived.wait(), TIMEOUT)
    await pair.asking.close()
    await asyncio.wait_for(cancelled.wait(), TIMEOUT)
    assert isinstance(sink.error, Disconnected)


async def test_nobody_listening_is_cannot_connect(pair):
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {"tcp": f"127.0.0.1:{_free_port()}"})
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)


async def test_an_instance_without_an_address_is_cannot_connect(pair):
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {})
    sink, _ = pair.send()
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)


@pytest.mark.parametrize(("server", "client"), [(b"a", b"b"), (b"a", b""), (b"", b"b")])
async def test_both_sides_must_know_the_secret(server, client, caplog):
    pair = await Pair(PlaneOptions(secret=server), PlaneOptions(secret=client)).start()
    pair.serve(iterator_handler(count, int))
    sink, _ = pair.send(b"\x01")
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)
    assert "secret" in sink.error.message
    await pair.close()


async def test_an_open_address_needs_a_secret():
    plane = create_request_plane("tcp", PlaneOptions(host="0.0.0.0"))
    with pytest.raises(ConfigError, match="no plane secret") as caught:
        await plane.serve(1)
    assert "--insecure-planes" in str(caught.value.hint)


async def test_a_taken_port_names_the_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        plane = create_request_plane("tcp", PlaneOptions(port=taken.getsockname()[1]))
        with pytest.raises(CannotConnect) as caught:
            await plane.serve(1)
    assert "--tcp-port" in str(caught.value.hint)


HELLO_WITHOUT_NONCE = encode_frames([(0, {"version": [1, 0]})], 1 << 20)
OTHER_MAJOR = encode_frames([(0, {"version": [9, 0], "nonce": b"0" * 16})], 1 << 20)


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "frame of"),
        (b"\xff\xff\xff\xff", "frame of 4294967295 bytes"),
        (b"\x03\x00\x00\x00\xc1\xc1\xc1", "malformed frame"),
        (b"\x01\x00\x00\x00\x05", "malformed frame"),
        (encode_frames([()], 1 << 20), "malformed message"),
        (encode_frames([(3, 1, "worker.generate", b"", {}, 1)], 1 << 20), "did not start with a handshake"),
        (HELLO_WITHOUT_NONCE, "no valid nonce"),
        (OTHER_MAJOR, "protocol [9, 0]"),
        (b"\x01\x10\x00\x00" + b"\x00" * 4097, "frame of 4097 bytes"),
    ],
)
async def test_garbage_drops_the_peer_with_a_logged_reason_and_spares_others(pair, caplog, garbage, reason):
    pair.serve(iterator_handler(count, int))
    reader, writer = await asyncio.open_connection(*pair.server.address.split(":"))
    with caplog.at_level(logging.WARNING, logger="dynamo.runtime.request_plane"):
        writer.write(garbage)
        await asyncio.wait_for(reader.read(), TIMEOUT)
    writer.close()
    assert reason in caplog.text
    sink, _ = pair.send(b"\x04")
    await sink.wait()
    assert len(sink.items) == 4


async def test_a_peer_that_never_greets_is_dropped(caplog):
    pair = await Pair(PlaneOptions(connect_timeout_seconds=0.05)).start()
    reader, writer = await asyncio.open_connection(*pair.server.address.split(":"))
    with caplog.at_level(logging.WARNING):
        while await asyncio.wait_for(reader.read(4096), TIMEOUT):
            pass
    writer.close()
    assert "no handshake" in caplog.text
    await pair.close()


async def test_a_silent_server_is_lost_to_its_clients(caplog):
    """A process that hangs accepts the connection and never answers a ping."""
    options = PlaneOptions(keepalive_seconds=0.02)
    greeted = asyncio.Event()
    silent = []

    async def hang(reader, writer):
        silent.append(writer)
        writer.write(encode_frames([(0, {"version": [1, 0], "nonce": b"0" * 16, "auth": False})], 1 << 20))
        await reader.read(4096)
        writer.write(encode_frames([(1, {})], 1 << 20))
        greeted.set()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    plane = create_request_plane("tcp", options)
    sink = Gathering()
    plane.send(InstanceRecord("ns", "w", "g", 1, {"tcp": f"127.0.0.1:{port}"}), b"", sink, Context("r"))
    await sink.wait()
    assert greeted.is_set()
    assert isinstance(sink.error, Disconnected)
    assert "silent" in sink.error.message
    for writer in silent:
        writer.close()
    server.close()
    await plane.close()


async def test_too_many_streams_are_refused_as_overload():
    pair = await Pair(PlaneOptions(max_streams=2)).start()
    pair.serve(iterator_handler(forever))
    sinks = [pair.send(b"\xc0", Context(str(n))) for n in range(3)]
    await sinks[2][0].wait()
    assert sinks[2][0].error.code == "overloaded"
    assert sinks[2][0].error.retry_after_seconds
    await pair.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
