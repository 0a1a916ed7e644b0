"""Asking and serving in iterator form, between two runtimes that share nothing but discovery."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from typing import Any

import msgspec
import pytest

from dynamo.errors import DynamoError, EngineError, EngineShutdown, InvalidRequest, NoInstances, Overloaded
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.server import iterator_handler
from dynamo.runtime.settings import RuntimeSettings

TIMEOUT = 10.0
ADDRESS = EndpointAddress("dynamo", "counter", "count")


class Cluster:
    """Serving runtimes of one endpoint, and one that asks."""

    def __init__(self, settings: RuntimeSettings, stack: contextlib.AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack

    async def start(self) -> DistributedRuntime:
        return await self._stack.enter_async_context(DistributedRuntime(self._settings))

    async def serve(self, serve, request_type: Any = Any, address: EndpointAddress = ADDRESS) -> InstanceRecord:
        runtime = await self.start()
        return await runtime.serve_endpoint(address, iterator_handler(serve, request_type))

    async def client(self, instances: int, address: EndpointAddress = ADDRESS):
        client = (await self.start()).client(address)

        async def poll() -> None:
            while len(client.instances()) != instances:
                await asyncio.sleep(0.005)

        await asyncio.wait_for(poll(), TIMEOUT)
        return client


@pytest.fixture
async def cluster(tmp_path):
    settings = RuntimeSettings(
        discovery_backend=f"memory://{uuid.uuid4().hex}", state_dir=str(tmp_path), event_plane="", plane_secret="s"
    )
    async with contextlib.AsyncExitStack() as stack:
        yield Cluster(settings, stack)


async def collect(items) -> list:
    return await asyncio.wait_for(_collect(items), TIMEOUT)


async def _collect(items) -> list:
    return [item async for item in items]


async def count(request, context):
    for number in range(request):
        yield number


async def test_two_runtimes_talk(cluster):
    await cluster.serve(count, int)
    client = await cluster.client(1)
    assert await collect(client.round_robin(3, Context("r"), int)) == [0, 1, 2]
    assert await collect(client.round_robin(0, Context("r"), int)) == []


async def test_items_have_the_type_that_is_asked_for(cluster):
    class Point(msgspec.Struct):
        x: int

    async def double(request: Point, context):
        yield Point(request.x * 2)

    await cluster.serve(double, Point)
    client = await cluster.client(1)
    assert await collect(client.round_robin(Point(4), Context("r"), Point)) == [Point(8)]
    assert await collect(client.round_robin({"x": 5}, Context("r"))) == [{"x": 10}]


async def test_round_robin_takes_turns_and_direct_does_not(cluster):
    def name_of(number):
        async def serve(request, context):
            yield number

        return serve

    records = [await cluster.serve(name_of(number)) for number in range(3)]
    client = await cluster.client(3)
    in_order = [records.index(record) for record in client.instances()]
    assert [(await collect(client.round_robin(None, Context("r"))))[0] for _ in range(6)] == in_order * 2
    assert [(await collect(client.direct(records[1], None, Context("r"))))[0] for _ in range(3)] == [1, 1, 1]


async def test_a_client_sees_only_its_endpoint(cluster):
    await cluster.serve(count, int)
    await cluster.serve(count, int, EndpointAddress("dynamo", "counter", "other"))
    client = await cluster.client(1)
    assert {record.address for record in client.instances()} == {ADDRESS}


async def test_nobody_there_is_said_at_once(cluster):
    client = await cluster.client(0)
    with pytest.raises(NoInstances, match=r"nobody serves dyn://dynamo\.counter\.count") as caught:
        client.round_robin(1, Context("r"))
    assert caught.value.retry_after_seconds


async def test_an_error_of_the_handler_arrives_after_the_items_before_it(cluster):
    async def fail(request, context):
        yield "before"
        raise Overloaded("queue is full", retry_after_seconds=3)

    await cluster.serve(fail)
    client = await cluster.client(1)
    items = client.round_robin(None, Context("r"))
    assert await anext(items) == "before"
    with pytest.raises(Overloaded, match="queue is full") as caught:
        await anext(items)
    assert caught.value.retry_after_seconds == 3


async def test_a_bug_of_the_handler_is_an_engine_error_and_is_logged(cluster, caplog):
    async def bug(request, context):
        yield 1 // request

    await cluster.serve(bug, int)
    client = await cluster.client(1)
    with caplog.at_level(logging.ERROR), pytest.raises(EngineError) as caught:
        await collect(client.round_robin(0, Context("req-3")))
    assert caught.value.message == "internal error; the worker's log has the details"
    assert "request req-3 failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert await collect(client.round_robin(1, Context("r"))) == [1]


async def test_an_item_that_cannot_be_encoded_is_an_engine_error(cluster, caplog):
    async def odd(request, context):
        yield object()

    await cluster.serve(odd)
    client = await cluster.client(1)
    with pytest.raises(EngineError, match="internal error"):
        await collect(client.round_robin(None, Context("r")))
    assert "TypeError" in caplog.text


async def test_a_slow_reader_holds_the_handler_back_and_gets_everything(cluster):
    yielded = 0
    many = 10_000

    async def flood(request, context):
        nonlocal yielded
        for number in range(many):
            yielded += 1
            yield number

    await cluster.serve(flood)
    client = await cluster.client(1)
    items = client.round_robin(None, Context("r"), int)
    got = [await anext(items) for _ in range(10)]
    previous = -1
    while previous != yielded:  # until it waits for room
        previous = yielded
        for _ in range(200):
            await asyncio.sleep(0)
    assert yielded < 1500
    got += await collect(items)
    assert got == list(range(many))


async def test_a_request_of_the_wrong_type_is_the_askers_fault(cluster):
    await cluster.serve(count, int)
    client = await cluster.client(1)
    with pytest.raises(InvalidRequest, match="Expected `int`, got `str`"):
        await collect(client.round_robin("three", Context("r")))


class Endless:
    """A handler that goes on until it is stopped, and says when."""

    def __init__(self, *, obedient: bool = True) -> None:
        self._obedient = obedient
        self.begun = asyncio.Event()
        self.cancelled = False
        self.closed = asyncio.Event()

    async def __call__(self, request, context):
        try:
            yield 0
            self.begun.set()
            await (context.wait_cancelled() if self._obedient else asyncio.Event().wait())
            for _ in range(10):  # tidying up takes a while
                await asyncio.sleep(0)
            yield "the last word"
        finally:
            self.cancelled = context.cancelled
            self.closed.set()


async def test_leaving_the_iterator_cancels_the_request(cluster):
    endless = Endless()
    await cluster.serve(endless)
    client = await cluster.client(1)
    items = client.round_robin(None, Context("r"))
    assert await anext(items) == 0
    await items.aclose()
    await asyncio.wait_for(endless.closed.wait(), TIMEOUT)
    assert endless.cancelled


async def test_a_task_that_is_cancelled_cancels_its_request(cluster):
    endless = Endless()
    await cluster.serve(endless)
    client = await cluster.client(1)
    task = asyncio.create_task(collect(client.round_robin(None, Context("r"))))
    await asyncio.wait_for(endless.begun.wait(), TIMEOUT)
    task.cancel()
    await asyncio.wait_for(endless.closed.wait(), TIMEOUT)
    assert endless.cancelled


async def test_cancelling_the_context_leaves_the_handler_the_last_word(cluster):
    endless = Endless()
    await cluster.serve(endless)
    client = await cluster.client(1)
    context = Context("r")
    items = client.round_robin(None, context)
    assert await anext(items) == 0
    context.cancel()
    assert await collect(items) == ["the last word"]


async def test_a_handler_that_does_not_listen_is_closed(cluster):
    deaf = Endless(obedient=False)
    await cluster.serve(deaf)
    client = await cluster.client(1)
    context = Context("r")
    items = client.round_robin(None, context)
    assert await anext(items) == 0
    context.cancel()
    assert await collect(items) == []
    assert deaf.closed.is_set()


async def test_a_handler_that_is_held_back_is_closed_by_a_cancel(cluster):
    """It hangs in the wait for credit, not in its own code, and must free what it holds all the same."""
    closed = asyncio.Event()

    async def flood(request, context):
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    await cluster.serve(flood)
    runtime = await cluster.start()
    client = await cluster.client(1)
    context = Context("r")

    class Slow:
        """Takes what comes and grants nothing."""

        arrived = asyncio.Event()

        def on_items(self, items):
            self.arrived.set()

        def on_end(self): ...

        def on_error(self, error): ...

    stream = runtime.request_plane.send(client.instances()[0], msgspec.msgpack.encode(None), Slow(), context)
    stream.pause()
    await asyncio.wait_for(Slow.arrived.wait(), TIMEOUT)
    context.cancel()
    await asyncio.wait_for(closed.wait(), TIMEOUT)


async def test_a_handler_that_gives_up_by_itself_does_not_look_complete(cluster):
    async def give_up(request, context):
        yield 1
        raise asyncio.CancelledError

    await cluster.serve(give_up)
    client = await cluster.client(1)
    with pytest.raises(EngineShutdown, match="request r was given up"):
        await collect(client.round_robin(None, Context("r")))


async def test_a_server_that_goes_away_ends_the_stream_with_an_error(cluster):
    serving = await cluster.start()
    endless = Endless()
    await serving.serve_endpoint(ADDRESS, iterator_handler(endless))
    client = await cluster.client(1)
    items = client.round_robin(None, Context("r"))
    assert await anext(items) == 0
    await serving.close()
    with pytest.raises(DynamoError) as caught:
        await collect(items)
    assert caught.value.code == "disconnected"
    await asyncio.wait_for(endless.closed.wait(), TIMEOUT)
