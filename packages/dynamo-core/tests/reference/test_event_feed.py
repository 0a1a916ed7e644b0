from __future__ import annotations

import asyncio

import pytest

from dynamo.errors import EngineError
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from dynamo.reference.event_feed import KvEventFeed


def _stored(name: int) -> BlockStored:
    return BlockStored([name], token_ids=[name], block_size=1)


async def _next(events):
    return (await asyncio.wait_for(anext(events), 5)).events


@pytest.fixture
def cached():
    """Names that the engine's cache holds."""
    return [1, 2]


@pytest.fixture
def feed(cached):
    feed = KvEventFeed(
        lambda: feed.push([AllBlocksCleared(), *(_stored(name) for name in cached)]), max_pending_steps=3
    )
    return feed


async def test_a_late_consumer_gets_the_content_first(feed):
    feed.push([_stored(1)])
    feed.push([_stored(2)])
    events = feed.events()
    assert await _next(events) == [_stored(1), _stored(2)]
    feed.push([BlockRemoved([2])])
    assert await _next(events) == [BlockRemoved([2])]


async def test_events_before_the_content_are_dropped():
    asked = asyncio.Event()
    feed = KvEventFeed(asked.set)
    waiting = asyncio.ensure_future(_next(feed.events()))
    await asked.wait()
    feed.push([_stored(1)])  # part of the content that was asked for
    feed.push([BlockRemoved([1]), AllBlocksCleared(), _stored(5)])
    assert await waiting == [_stored(5)]


async def test_a_slow_consumer_is_resynchronised(feed, cached):
    events = feed.events()
    await _next(events)
    for name in range(10, 13):
        feed.push([_stored(name)])
    cached[:] = [7, 8]
    feed.push([_stored(13)])  # one too many
    feed.push([_stored(14)])
    assert await _next(events) == [AllBlocksCleared(), _stored(7), _stored(8)]
    assert await _next(events) == [_stored(14)]


async def test_there_is_one_consumer_at_a_time(feed):
    events = feed.events()
    await _next(events)
    with pytest.raises(EngineError, match="consumer already"):
        await anext(feed.events())
    await events.aclose()
    assert await _next(feed.events()) == [_stored(1), _stored(2)]


async def test_closing_ends_the_iteration(feed):
    events = feed.events()
    await _next(events)
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await anext(events)
