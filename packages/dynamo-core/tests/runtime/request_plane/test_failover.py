"""Requests over NATS with tcp behind it: what an outage of a real NATS server costs, and who carries what."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from dynamo.errors import CannotConnect, Disconnected, InvalidRequest
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.broker import BrokerOptions
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.server import iterator_handler
from dynamo.runtime.settings import RuntimeSettings

TIMEOUT = 20.0


@pytest.fixture
async def over(pair_class):
    """Starts a pair over a NATS server, with tcp as fallback."""
    pairs = []

    async def make(server, **options):
        broker = BrokerOptions(servers=(server.url,))
        options = PlaneOptions(namespace=uuid.uuid4().hex, broker=broker, secret=b"s", **options)
        pair = pair_class("nats", options, fallback="tcp")
        pairs.append(pair)
        return await pair.start()

    yield make
    for pair in pairs:
        await pair.close()


def carried(pair):
    """Open connections by plane."""
    nats, tcp = pair.server._servers
    return {"nats": len(nats.connections), "tcp": len(tcp.connections)}


async def echo(request, context):
    yield request


async def ask(pair):
    sink, _ = pair.send(b"\x01")
    await sink.wait()
    return sink.error or sink.items


async def test_both_addresses_are_announced_and_nats_is_preferred(nats_server, over):
    pair = await over(nats_server)
    pair.serve(iterator_handler(echo))
    assert sorted(pair.record.transports) == ["nats", "tcp"]
    assert await ask(pair) == [b"\x01"]
    assert carried(pair) == {"nats": 1, "tcp": 0}


async def test_an_instance_without_nats_is_asked_over_tcp(nats_server, over):
    pair = await over(nats_server)
    pair.serve(iterator_handler(echo))
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {"tcp": pair.record.transports["tcp"]})
    assert pair.asking.reaches(pair.record)
    assert await ask(pair) == [b"\x01"]
    assert carried(pair) == {"nats": 0, "tcp": 1}


async def test_an_instance_that_nobody_can_reach_is_cannot_connect(nats_server, over):
    pair = await over(nats_server)
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {})
    assert not pair.asking.reaches(pair.record)
    assert isinstance(await ask(pair), CannotConnect)


async def test_an_instance_that_lost_its_nats_is_asked_over_tcp(nats_server, over):
    """The asking side is connected to NATS, and nobody listens at the subject."""
    pair = await over(nats_server)
    pair.serve(iterator_handler(echo))
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {**pair.record.transports, "nats": "dyn.gone"})
    assert await ask(pair) == [b"\x01"]
    assert carried(pair) == {"nats": 0, "tcp": 1}


async def test_a_stream_that_is_paused_at_once_is_held_back_over_the_fallback_too(nats_server, over):
    pair = await over(nats_server)
    produced = []

    async def eager(request, context):
        for number in range(2000):
            produced.append(number)
            yield number

    pair.serve(iterator_handler(eager))
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {**pair.record.transports, "nats": "dyn.gone"})
    sink, stream = pair.send(b"\x01")
    stream.pause()
    await sink.begin()
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(produced) <= 257
    stream.resume()
    await sink.wait()
    assert len(sink.items) == 2000


async def test_a_cancelled_request_is_not_tried_again(nats_server, over):
    pair = await over(nats_server)
    pair.serve(iterator_handler(echo))
    pair.record = InstanceRecord("ns", "worker", "generate", 7, {**pair.record.transports, "nats": "dyn.gone"})
    context = Context("r")
    sink, _ = pair.send(b"\x01", context)
    context.cancel()
    await sink.wait()
    assert isinstance(sink.error, CannotConnect)
    assert carried(pair) == {"nats": 0, "tcp": 0}


async def test_a_refusal_of_the_worker_is_final(nats_server, over):
    pair = await over(nats_server)
    error = await ask(pair)
    assert isinstance(error, InvalidRequest)
    assert carried(pair) == {"nats": 1, "tcp": 0}


async def kill(server):
    server.kill()


async def hang(server):
    server.pause()


async def start(server):
    server.start()


async def go_on(server):
    server.resume()


@pytest.mark.parametrize(("take_down", "bring_back"), [(kill, start), (hang, go_on)])
async def test_an_outage_costs_the_open_streams_and_no_new_request(own_nats_server, over, take_down, bring_back):
    pair = await over(own_nats_server, keepalive_seconds=0.2, connect_timeout_seconds=1.0)
    cancelled = asyncio.Event()

    async def held(request, context):
        yield 0
        await context.wait_cancelled()
        cancelled.set()

    pair.serve(iterator_handler(held))
    stream, _ = pair.send(b"\x01")
    await stream.begin()
    await take_down(own_nats_server)
    await stream.wait()
    assert isinstance(stream.error, Disconnected)
    await asyncio.wait_for(cancelled.wait(), TIMEOUT)
    pair.serve(iterator_handler(echo))
    for _ in range(5):
        assert await ask(pair) == [b"\x01"]
    assert carried(pair)["tcp"] == 1
    await bring_back(own_nats_server)

    async def until_over_nats():
        while not carried(pair)["nats"]:
            assert await ask(pair) == [b"\x01"]

    await asyncio.wait_for(until_over_nats(), TIMEOUT)


async def test_draining_and_counting_cover_both_planes(nats_server, over):
    pair = await over(nats_server)
    release = asyncio.Event()

    async def held(request, context):
        yield 0
        await release.wait()

    pair.serve(iterator_handler(held))
    first, _ = pair.send(b"\x01")
    pair.record.transports.pop("nats")
    second, _ = pair.send(b"\x01")
    await asyncio.gather(first.begin(), second.begin())
    assert pair.server.open_streams == 2
    pair.server.stop_accepting()
    refused = await ask(pair)
    assert refused.code == "draining"
    release.set()
    await asyncio.gather(first.wait(), second.wait())
    assert pair.server.open_streams == 0


def settings(**values):
    return RuntimeSettings(discovery_backend="memory", event_plane="", **values)


async def test_a_process_serves_nats_and_its_fallback(nats_server):
    chosen = settings(request_plane="nats", nats_servers=[nats_server.url])
    async with DistributedRuntime(chosen) as runtime:
        record = await runtime.serve_endpoint(EndpointAddress("dynamo", "worker", "generate"), iterator_handler(echo))
        assert sorted(record.transports) == ["nats", "tcp"]


async def test_the_fallback_can_be_turned_off(nats_server):
    chosen = settings(request_plane="nats", nats_servers=[nats_server.url], request_plane_fallback="")
    async with DistributedRuntime(chosen) as runtime:
        record = await runtime.serve_endpoint(EndpointAddress("dynamo", "worker", "generate"), iterator_handler(echo))
        assert sorted(record.transports) == ["nats"]


async def test_a_loopback_address_is_no_fallback_across_machines():
    """Peers elsewhere would reach whatever listens at that port on their own machine."""
    runtime = DistributedRuntime(settings(request_plane="nats", nats_servers=["nats://10.0.0.1"], plane_secret="s"))
    both = InstanceRecord("ns", "worker", "generate", 7, {"tcp": "127.0.0.1:1"})
    assert not runtime.request_plane.reaches(both)
    await runtime.close()
    runtime = DistributedRuntime(
        settings(request_plane="nats", nats_servers=["nats://10.0.0.1"], plane_secret="s", tcp_host="0.0.0.0")
    )
    assert runtime.request_plane.reaches(both)
    await runtime.close()
