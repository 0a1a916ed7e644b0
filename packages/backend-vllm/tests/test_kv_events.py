"""vLLM's KV events as the worker host gets them: several ranks, slow consumers, the end; addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import zmq

from dynamo.errors import ConfigError, EngineError
from dynamo.protocols.kv_events import BlockStored
from dynamo.runtime.kv_event_stream import Timing
from dynamo.testing.engine_publisher import EnginePublisher, stored_event
from dynamo.vllm.kv_events import VllmKvEvents, rank_endpoint

TIMEOUT = 15.0
QUICK = Timing(quiet_seconds=0.02, replay_seconds=0.5)


def stored(*hashes: int) -> dict:
    return stored_event(hashes, range(2 * len(hashes)), block_size=2)


def follow(publisher: EnginePublisher, **options) -> VllmKvEvents:
    endpoints = f"tcp://*:{publisher.port}", f"tcp://*:{publisher.replay_port}"
    return VllmKvEvents(*endpoints, topic="kv", timing=QUICK, **options)


@pytest.fixture
async def publisher() -> AsyncIterator[EnginePublisher]:
    publisher = EnginePublisher()
    yield publisher
    await publisher.close()


async def test_what_an_engine_stored_before_it_is_followed_is_heard(publisher):
    await publisher.publish(stored(1))
    events = follow(publisher)
    batch = await asyncio.wait_for(events.__anext__(), TIMEOUT)
    assert (batch.dp_rank, batch.events) == (0, [BlockStored([1], [0, 1], 2)])
    assert not events.dropped
    await events.close()


async def test_what_means_nothing_is_counted(publisher):
    await publisher.publish(payload=b"\xc1")
    await publisher.publish(stored(1))
    events = follow(publisher)
    assert (await asyncio.wait_for(events.__anext__(), TIMEOUT)).events == [BlockStored([1], [0, 1], 2)]
    assert events.dropped == {"an unreadable message": 1}
    await events.close()


async def neighbours() -> tuple[EnginePublisher, EnginePublisher]:
    """Two publishers whose ports differ by one."""
    for port in range(21_500, 31_500, 10):
        try:
            one = EnginePublisher(port, port + 5)
        except zmq.ZMQError:
            continue
        try:
            return one, EnginePublisher(port + 1, port + 6)
        except zmq.ZMQError:
            await one.close()
    pytest.fail("no neighbouring ports are free")


async def test_ranks_publish_on_ports_of_their_own():
    one, two = await neighbours()
    events = follow(one, dp_ranks=(0, 1))
    await one.publish(stored(1))
    await two.publish(stored(2))
    batches = [await asyncio.wait_for(events.__anext__(), TIMEOUT) for _ in range(2)]
    assert {batch.dp_rank: batch.events[0].block_hashes for batch in batches} == {0: [1], 1: [2]}
    await events.close()
    await one.close()
    await two.close()


async def test_a_slow_consumer_loses_nothing_within_the_bounds(publisher):
    events = follow(publisher, pending_batches=2)
    for block in range(200):
        await publisher.publish(stored(block))
    seen = [(await asyncio.wait_for(events.__anext__(), TIMEOUT)).events[0].block_hashes for _ in range(200)]
    assert seen == [[block] for block in range(200)]
    await events.close()


async def test_close_ends_the_iteration_and_is_idempotent(publisher):
    events = follow(publisher)
    waiting = asyncio.create_task(events.__anext__())
    await asyncio.sleep(0)
    await events.close()
    await events.close()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert [batch async for batch in events] == []


async def test_close_before_the_first_step():
    events = VllmKvEvents("tcp://*:5557")
    await events.close()
    assert [batch async for batch in events] == []


async def test_an_address_that_cannot_be_connected_to_is_an_error():
    events = VllmKvEvents("tcp://no such host:5557")
    with pytest.raises(EngineError, match="rank 0 cannot be read from tcp://no such host"):
        await asyncio.wait_for(events.__anext__(), TIMEOUT)
    await events.close()


@pytest.mark.parametrize(
    ("endpoint", "rank", "connected"),
    [
        ("tcp://*:5557", 0, "tcp://127.0.0.1:5557"),
        ("tcp://*:5557", 3, "tcp://127.0.0.1:5560"),
        ("tcp://0.0.0.0:5557", 1, "tcp://127.0.0.1:5558"),
        ("tcp://10.1.2.3:5557", 0, "tcp://10.1.2.3:5557"),
        ("tcp://[::1]:5557", 0, "tcp://[::1]:5557"),
        ("ipc:///run/kv", 0, "ipc:///run/kv"),
        ("ipc:///run/inproc-kv", 0, "ipc:///run/inproc-kv"),
        ("ipc:///run/inproc-kv", 2, "ipc:///run/inproc-kv_dp2"),
    ],
)
def test_where_a_rank_publishes(endpoint, rank, connected):
    assert rank_endpoint(endpoint, rank) == connected


@pytest.mark.parametrize(
    ("endpoint", "rank"),
    [("5557", 0), ("", 0), ("tcp://*", 0), ("tcp://*:0", 0), ("tcp://*:65535", 1), ("ipc://", 0), ("ipc://x", 1)],
)
def test_endpoints_that_no_rank_has(endpoint, rank):
    with pytest.raises(ConfigError):
        rank_endpoint(endpoint, rank)
