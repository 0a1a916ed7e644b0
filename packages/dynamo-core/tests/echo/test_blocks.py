"""The echo engine's books: what is held, cached, evicted, and which events say so."""

from __future__ import annotations

import asyncio
import random

import pytest

from dynamo.echo import blocks
from dynamo.echo.blocks import BlockCache
from dynamo.errors import Overloaded
from dynamo.protocols.kv_events import BlockRemoved, BlockStored


def _events(cache: BlockCache) -> list:
    found, cache.events = cache.events, []
    return found


def test_full_blocks_are_cached_and_the_rest_is_private() -> None:
    cache = BlockCache(total=8, block_size=2)
    held = cache.acquire([1, 2, 3, 4, 5], None)
    assert (len(held.chain), held.private, held.cached_tokens) == (2, 1, 0)
    assert (cache.used, cache.cached) == (3, 0)
    [event] = _events(cache)
    assert event == BlockStored(held.chain, [1, 2, 3, 4], 2)
    cache.release(held)
    assert (cache.used, cache.cached) == (0, 2)


def test_a_longer_prompt_reuses_and_extends_a_chain() -> None:
    cache = BlockCache(total=8, block_size=2)
    first = cache.acquire([1, 2, 3, 4], None)
    second = cache.acquire([1, 2, 3, 4, 5, 6], None)
    assert second.cached_tokens == 4
    assert second.chain[:2] == first.chain
    assert _events(cache)[1] == BlockStored(second.chain[2:], [5, 6], 2, parent_hash=first.chain[1])
    assert cache.used == 3


def test_salts_do_not_share() -> None:
    cache = BlockCache(total=8, block_size=2)
    cache.acquire([1, 2], "a")
    assert cache.acquire([1, 2], "b").cached_tokens == 0
    assert [event.cache_salt for event in _events(cache)] == ["a", "b"]


def test_eviction_takes_the_oldest_and_children_before_parents() -> None:
    cache = BlockCache(total=3, block_size=2)
    old = cache.acquire([1, 2, 3, 4], None)
    parent, child = old.chain
    cache.release(old)
    cache.acquire([9, 8, 7, 6], None)
    assert BlockRemoved([child]) in _events(cache)
    assert cache.cached == 1
    assert cache.acquire([1, 2], None).chain == [parent]


def test_held_blocks_are_never_evicted() -> None:
    cache = BlockCache(total=2, block_size=2)
    cache.acquire([1, 2, 3], None)
    with pytest.raises(Overloaded, match="needs 1 KV blocks; 2 of 2 are in use"):
        cache.acquire([5], None)


def test_a_cached_prefix_counts_once_against_a_full_pool() -> None:
    cache = BlockCache(total=2, block_size=2)
    cache.release(cache.acquire([1, 2], None))
    cache.acquire([5], None)
    assert cache.acquire([1, 2], None).cached_tokens == 2
    with pytest.raises(Overloaded):
        cache.acquire([7], None)


def test_release_twice_gives_back_once() -> None:
    cache = BlockCache(total=4, block_size=2)
    first, second = cache.acquire([1, 2, 3], None), cache.acquire([1, 2, 3], None)
    cache.release(first)
    cache.release(first)
    assert cache.used == 2
    cache.release(second)
    assert (cache.used, cache.cached) == (0, 1)


def test_without_a_reader_events_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "EVENT_BACKLOG_LIMIT", 3)
    cache = BlockCache(total=100, block_size=1)
    for token in range(10):
        cache.release(cache.acquire([token], None))
    assert len(cache.events) == 3
    assert cache.cached == 3
    assert cache.acquire([0], None).cached_tokens == 1
    assert cache.acquire([9], None).cached_tokens == 0


async def test_who_waits_for_events_gets_all_of_a_moment() -> None:
    cache = BlockCache(total=8, block_size=2)
    waiting = asyncio.ensure_future(cache.take_events())
    await asyncio.sleep(0)
    first, second = cache.acquire([1, 2], None), cache.acquire([3, 4], None)
    events = await asyncio.wait_for(waiting, 10)
    assert [event.block_hashes for event in events] == [first.chain, second.chain]
    third = cache.acquire([5, 6], None)
    assert (await asyncio.wait_for(cache.take_events(), 10))[0].block_hashes == third.chain
    assert cache.events == []


def test_counters_return_to_the_start_over_random_lives() -> None:
    cache = BlockCache(total=24, block_size=2)
    chance = random.Random(1)
    running, stored = [], set()
    for _ in range(3000):
        if running and chance.random() < 0.5:
            cache.release(running.pop(chance.randrange(len(running))))
            continue
        prompt = [chance.randrange(3) for _ in range(chance.randrange(1, 12))]
        try:
            running.append(cache.acquire(prompt, None))
        except Overloaded:
            assert running
        for event in _events(cache):
            if isinstance(event, BlockRemoved):
                assert stored.issuperset(event.block_hashes)
                stored.difference_update(event.block_hashes)
            else:
                assert stored.isdisjoint(event.block_hashes)
                assert event.parent_hash is None or event.parent_hash in stored
                stored.update(event.block_hashes)
        assert cache.used + cache.cached <= cache.total
    for held in running:
        cache.release(held)
    assert cache.used == 0
    assert cache.cached == len(stored)
