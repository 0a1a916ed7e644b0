"""KV events of an engine as routers see them: our hashes, numbers without holes, snapshots that agree."""

from __future__ import annotations

import asyncio
import random

import msgspec
import numpy as np
import pytest

from dynamo.protocols.hashing import seed_of, sequence_hashes
from dynamo.protocols.kv_events import (
    BlockRemoved,
    BlockStored,
    EngineKvEvents,
    HashesRemoved,
    HashesStored,
    KvEventBatch,
    KvSnapshotRequest,
)
from dynamo.router.core.event_order import EventOrder, Verdict
from dynamo.runtime.context import Context
from dynamo.testing.engine_cache import EngineCache
from dynamo.worker.kv_publisher import REPLAY_BATCHES, KvEventPublisher

BLOCK = 4


def ours(tokens, **seed):
    return sequence_hashes(np.asarray(tokens, dtype=np.uint32), BLOCK, seed_of(**seed)).tolist()


def hashes_of(event):
    return np.frombuffer(event.hashes, dtype="<u8").tolist()


class Index:
    """The simplest listener: applies batches to a set."""

    def __init__(self):
        self.blocks = set()

    def apply(self, batch: KvEventBatch):
        if batch.snapshot:
            self.blocks.clear()
        for event in batch.events:
            if isinstance(event, HashesStored):
                self.blocks.update((event.medium, h) for h in hashes_of(event))
            elif isinstance(event, HashesRemoved):
                self.blocks.difference_update((event.medium, h) for h in hashes_of(event))
            else:
                self.blocks.clear()


@pytest.fixture
def published():
    return []


@pytest.fixture
def publisher(published):
    decode = msgspec.msgpack.Decoder(KvEventBatch).decode
    return KvEventPublisher(5, "m", BLOCK, lambda payload: published.append(decode(payload)))


async def snapshot(publisher, **request):
    return [batch async for batch in publisher.snapshot(KvSnapshotRequest(**request), Context("s"))]


def test_stored_blocks_get_the_hashes_that_a_prompt_gets(publisher, published):
    tokens = list(range(12))
    publisher.take(EngineKvEvents([BlockStored(["a", "b"], tokens[:8], BLOCK)]))
    publisher.take(EngineKvEvents([BlockStored(["c"], tokens[8:], BLOCK, parent_hash="b")]))
    assert [h for batch in published for event in batch.events for h in hashes_of(event)] == ours(tokens)
    assert published[1].events[0].parent == ours(tokens)[1]
    assert [(b.instance_id, b.model, b.sequence, b.block_size) for b in published] == [(5, "m", 0, 4), (5, "m", 1, 4)]


def test_salt_and_adapter_enter_the_hashes(publisher, published):
    publisher.take(EngineKvEvents([BlockStored([1], [1, 2, 3, 4], BLOCK, lora="x", cache_salt="y")]))
    assert hashes_of(published[0].events[0]) == ours([1, 2, 3, 4], lora="x", cache_salt="y")


def test_a_removal_names_what_was_stored(publisher, published):
    publisher.take(EngineKvEvents([BlockStored([1, 2], list(range(8)), BLOCK), BlockRemoved([2])]))
    assert hashes_of(published[0].events[1]) == [ours(list(range(8)))[1]]


def test_unknown_parents_and_removals_are_dropped_and_counted(publisher, published):
    publisher.take(EngineKvEvents([BlockStored([7], [1, 2, 3, 4], BLOCK, parent_hash=99), BlockRemoved([123])]))
    assert published == []
    assert publisher.mirror(0).orphans == 1


def test_the_last_of_two_copies_counts(publisher, published):
    """Engines may hold the same tokens twice under hashes of their own."""
    publisher.take(EngineKvEvents([BlockStored([1], [1, 2, 3, 4], BLOCK), BlockStored([2], [1, 2, 3, 4], BLOCK)]))
    publisher.take(EngineKvEvents([BlockRemoved([1])]))
    assert len(published) == 1
    publisher.take(EngineKvEvents([BlockRemoved([2])]))
    assert hashes_of(published[1].events[0]) == ours([1, 2, 3, 4])


def test_a_hash_that_is_stored_again_with_other_content_leaves_no_ghost(publisher, published):
    first, second = [1, 2, 3, 4], [5, 6, 7, 8]
    publisher.take(EngineKvEvents([BlockStored([1], first, BLOCK), BlockStored([2], first, BLOCK)]))
    publisher.take(EngineKvEvents([BlockStored([1], second, BLOCK)]))
    assert len(published[1].events) == 1  # another copy of the first is left
    publisher.take(EngineKvEvents([BlockStored([2], second, BLOCK)]))
    removed, stored = published[2].events
    assert (hashes_of(removed), hashes_of(stored)) == (ours(first), ours(second))
    publisher.take(EngineKvEvents([BlockRemoved([1, 2])]))
    assert [hashes_of(event) for event in published[3].events] == [ours(second)]
    assert publisher.mirror(0).content() == []


def test_ranks_have_numbers_of_their_own(publisher, published):
    for rank in (0, 1, 0):
        publisher.take(EngineKvEvents([BlockStored([rank], [1, 2, 3, rank], BLOCK)], dp_rank=rank))
    assert [(batch.dp_rank, batch.sequence) for batch in published] == [(0, 0), (1, 0), (0, 1)]


def first_blocks(*numbers, rank=0):
    return EngineKvEvents([BlockStored([number], [number] * BLOCK, BLOCK) for number in numbers], dp_rank=rank)


async def test_events_that_come_together_are_one_message_per_rank_and_leave_after_the_outputs(publisher, published):
    engine, sent = asyncio.Queue(), []

    async def events():
        while (batch := await engine.get()) is not None:
            yield batch

    following = asyncio.ensure_future(publisher.follow(events()))
    await asyncio.sleep(0)
    for batch in (first_blocks(1), first_blocks(2, rank=1), first_blocks(3, 4)):
        engine.put_nowait(batch)
    # What an engine hands out after its events is on the way before them.
    asyncio.get_running_loop().call_soon(lambda: sent.append(list(published)))
    while not published:
        await asyncio.sleep(0)
    assert sent == [[]]
    assert [(batch.dp_rank, batch.sequence) for batch in published] == [(0, 0), (1, 0)]
    assert [hashes_of(event) for event in published[0].events] == [ours([number] * BLOCK) for number in (1, 3, 4)]
    engine.put_nowait(first_blocks(5))
    engine.put_nowait(None)
    await asyncio.wait_for(following, 10)
    assert [hashes_of(event) for event in published[2].events] == [ours([5] * BLOCK)]
    assert len(published) == 3


def test_a_message_has_a_bound_and_the_next_goes_on_with_the_numbers(publisher, published):
    publisher.take(first_blocks(*range(5000)))
    assert [batch.sequence for batch in published] == [0, 1, 2]
    assert max(sum(len(event.hashes) for event in batch.events) for batch in published) <= 16 << 10
    stored = [each for batch in published for event in batch.events for each in hashes_of(event)]
    assert stored == [ours([number] * BLOCK)[0] for number in range(5000)]


async def test_a_small_gap_is_replayed(publisher, published):
    for number in range(10):
        publisher.take(EngineKvEvents([BlockStored([number], [number] * 4, BLOCK)]))
    replayed = await snapshot(publisher, epoch=publisher.epoch, after=6)
    assert [batch.sequence for batch in replayed] == [7, 8, 9]
    assert not any(batch.snapshot for batch in replayed)
    assert replayed == published[7:]


@pytest.mark.parametrize("request_fields", [{}, {"epoch": 1, "after": 3}])
async def test_a_stranger_gets_a_snapshot(publisher, request_fields):
    publisher.take(EngineKvEvents([BlockStored([1, 2, 3], list(range(12)), BLOCK), BlockRemoved([3])]))
    (batch,) = await snapshot(publisher, **request_fields)
    assert batch.snapshot
    assert batch.sequence == 0
    assert [hashes_of(event) for event in batch.events] == [ours(list(range(12)))[:2]]


async def test_a_gap_beyond_the_buffer_is_a_snapshot(publisher):
    for number in range(REPLAY_BATCHES + 5):
        publisher.take(EngineKvEvents([BlockStored([number], [number] * 4, BLOCK)]))
    batches = await snapshot(publisher, epoch=publisher.epoch, after=2)
    assert batches[0].snapshot
    assert batches[-1].sequence == REPLAY_BATCHES + 4
    index = Index()
    for batch in batches:
        index.apply(batch)
    assert len(index.blocks) == REPLAY_BATCHES + 5


async def test_all_parts_of_a_snapshot_have_the_number_at_which_it_was_taken(publisher, published):
    def store(number):
        publisher.take(EngineKvEvents([BlockStored([number], [number] * 4, BLOCK)]))

    for number in range(10_000):
        store(number)
    order, index, added = EventOrder(), Index(), 10_000
    assert order.judge(published[-1]) is Verdict.ASK
    async for part in publisher.snapshot(KvSnapshotRequest(0, 0, -1), Context("s")):
        assert order.judge_answer(part) is Verdict.APPLY
        index.apply(part)
        store(added)  # the engine goes on while the parts are sent
        assert order.judge(published[-1]) is Verdict.KEEP
        added += 1
    assert added > 10_001
    for batch in order.answered():
        index.apply(batch)
    assert len(index.blocks) == added


async def test_an_empty_cache_has_a_snapshot_too(publisher):
    (batch,) = await snapshot(publisher)
    assert batch.snapshot
    assert (batch.events, batch.sequence) == ([], -1)


async def test_random_lives_keep_listener_snapshot_and_truth_equal(publisher, published):
    cache = EngineCache(random.Random(3), BLOCK, media=("device", "host"))
    for _ in range(3000):
        publisher.take(EngineKvEvents([cache.step()]))
    assert [batch.sequence for batch in published] == list(range(len(published)))
    listener, fresh = Index(), Index()
    for batch in published:
        listener.apply(batch)
    for batch in await snapshot(publisher):
        fresh.apply(batch)
    assert listener.blocks == fresh.blocks == cache.content()
