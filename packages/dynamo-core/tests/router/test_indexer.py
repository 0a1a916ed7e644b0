"""The indexer follows real publishers over a plane that loses, doubles and reorders; wrong events are harmless."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter

import msgspec
import numpy as np
import pytest

from dynamo.errors import Disconnected
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.hashing import sequence_hashes
from dynamo.protocols.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EngineKvEvents,
    HashesRemoved,
    HashesStored,
    KvEventBatch,
    KvSnapshotRequest,
)
from dynamo.router.indexer import KvIndexer
from dynamo.testing.engine_cache import EngineCache
from dynamo.worker.kv_publisher import REPLAY_BATCHES, KvEventPublisher

SIZE = 4
decode = msgspec.msgpack.Decoder(KvEventBatch).decode
encode = msgspec.msgpack.Encoder().encode


class Plane:
    """A request plane whose only endpoint is `kv_snapshot`, answered by publishers of this process."""

    def __init__(self):
        self.publishers = {}
        self.failures = 0
        self.asked = 0
        self._tasks = set()

    def send(self, instance, payload, sink, context):
        self.asked += 1
        task = asyncio.ensure_future(self._answer(instance, payload, sink, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return self

    def cancel(self):
        pass

    async def _answer(self, instance, payload, sink, context):
        await asyncio.sleep(0)
        publisher = self.publishers.get(instance.instance_id)
        if self.failures or publisher is None:
            self.failures -= 1
            sink.on_error(Disconnected("gone"))
            return
        assert instance.endpoint == "kv_snapshot"
        request = msgspec.msgpack.decode(payload, type=KvSnapshotRequest)
        async for item in publisher.snapshot(request, context):
            sink.on_items([encode(item)])
        sink.on_end()


class Cluster:
    """Publishers, an indexer and a wire between them."""

    def __init__(self, record, plane=True):
        self.plane = Plane()
        self.counts = Counter()
        self.indexer = KvIndexer(self.plane if plane else None, count=lambda kind, n: self.counts.update({kind: n}))
        self.record = record
        self.wire = []

    def worker(self, number, follow=True):
        publisher = KvEventPublisher(number, "m", SIZE, self.wire.append)
        self.plane.publishers[number] = publisher
        if follow:
            self.indexer.follow(key(number), number, SIZE, self.record(number))
        return publisher

    def deliver(self):
        batches, self.wire[:] = [decode(payload) for payload in self.wire], []
        for batch in batches:
            self.indexer.take(batch)

    async def settled(self):
        await with_timeout(self._settled())

    async def _settled(self):
        while self.indexer.asking() or any(s.order.asking for s in self.indexer._sources.values()):
            await asyncio.sleep(0)

    def held(self, tokens):
        hashes = sequence_hashes(np.asarray(tokens, np.uint32), SIZE).tolist()
        return self.indexer.index(SIZE).device.match(hashes)


def key(number):
    return WorkerKey(InstanceId(number), 0)


async def with_timeout(waiting):
    await asyncio.wait_for(waiting, 20)


def stored(tokens, opaque, parent=None):
    return EngineKvEvents([BlockStored(opaque, tokens, SIZE, parent)])


@pytest.fixture
async def cluster(record):
    made = Cluster(record)
    yield made
    await made.indexer.close()


def packed(*hashes):
    return np.asarray(hashes, "<u8").tobytes()


async def test_a_new_worker_is_asked_what_it_holds(cluster):
    publisher = cluster.worker(1, follow=False)
    publisher.take(stored(list(range(12)), [1, 2, 3]))
    cluster.wire.clear()
    cluster.indexer.follow(key(1), 1, SIZE, cluster.record(1))
    assert cluster.indexer.asking() == 1
    await cluster.settled()
    assert cluster.held(range(12)) == {1: 3}
    assert cluster.counts["snapshot"] == 1


async def test_events_are_applied_as_they_come(cluster):
    publisher = cluster.worker(1)
    await cluster.settled()
    publisher.take(stored(list(range(12)), [1, 2, 3]))
    publisher.take(EngineKvEvents([BlockRemoved([3])]))
    cluster.deliver()
    assert cluster.held(range(12)) == {1: 2}
    publisher.take(EngineKvEvents([AllBlocksCleared()]))
    cluster.deliver()
    assert cluster.held(range(12)) == {}
    assert cluster.plane.asked == 1


async def test_what_was_lost_is_asked_for(cluster):
    publisher = cluster.worker(1)
    await cluster.settled()
    publisher.take(stored(list(range(4)), [1]))
    cluster.wire.clear()
    publisher.take(stored(list(range(4, 8)), [2], 1))
    cluster.deliver()
    assert cluster.held(range(8)) == {}
    await cluster.settled()
    assert cluster.held(range(8)) == {1: 2}
    assert (cluster.counts["gap"], cluster.counts["replayed"]) == (1, 2)


async def test_more_loss_than_the_worker_keeps_costs_a_snapshot(cluster):
    publisher = cluster.worker(1)
    await cluster.settled()
    tokens = list(range(4 * (REPLAY_BATCHES + 10)))
    for n in range(REPLAY_BATCHES + 10):
        publisher.take(stored(tokens[4 * n : 4 * n + 4], [n + 1], n or None))
    del cluster.wire[:-1]
    cluster.deliver()
    await cluster.settled()
    assert cluster.held(tokens) == {1: REPLAY_BATCHES + 10}
    assert cluster.counts["snapshot"] == 2


async def test_a_worker_that_does_not_answer_is_asked_again(cluster):
    cluster.plane.failures = 2
    publisher = cluster.worker(1)
    publisher.take(stored(list(range(4)), [1]))
    cluster.deliver()
    await cluster.settled()
    assert cluster.held(range(4)) == {1: 1}
    assert cluster.counts["ask_failed"] == 2


async def test_a_dead_worker_leaves_with_one_call(cluster):
    for number in (1, 2):
        publisher = cluster.worker(number)
        publisher.take(stored(list(range(8)), [1, 2]))
    await cluster.settled()
    cluster.indexer.forget(key(1))
    assert cluster.held(range(8)) == {2: 2}
    cluster.indexer.forget(key(1))
    cluster.deliver()
    assert cluster.counts["unknown_worker"] == 1


async def test_events_of_strangers_change_nothing(cluster):
    cluster.worker(9, follow=False).take(stored(list(range(4)), [1]))
    cluster.deliver()
    assert cluster.indexer.blocks() == 0
    assert cluster.counts["unknown_worker"] == 1


def wrong_batches(publisher):
    def batch(**fields):
        given = {"block_size": SIZE, "events": [], "sequence": 1, "epoch": publisher.epoch, **fields}
        return KvEventBatch(1, 0, model="m", **given)

    return {
        "wrong_block_size": batch(block_size=SIZE * 2),
        "unasked_snapshot": batch(snapshot=True),
        "malformed": batch(events=[HashesStored(b"123")]),
        "unknown_removal": batch(events=[HashesRemoved(packed(1, 2, 3))]),
        "conflict": batch(events=[HashesStored(packed(77)), HashesStored(packed(77), 77)]),
        "duplicate": batch(sequence=0),
        "stale_epoch": batch(epoch=1),
        "other_medium": batch(events=[HashesStored(packed(5), medium="tape")]),
    }


KINDS = [
    "wrong_block_size",
    "unasked_snapshot",
    "malformed",
    "unknown_removal",
    "conflict",
    "duplicate",
    "stale_epoch",
    "other_medium",
]


@pytest.mark.parametrize("kind", KINDS)
async def test_wrong_events_are_counted_logged_once_and_harmless(cluster, caplog, kind):
    publisher, other = cluster.worker(1), cluster.worker(2)
    await cluster.settled()
    for each in (publisher, other):
        each.take(stored(list(range(8)), [1, 2]))
    cluster.deliver()
    with caplog.at_level(logging.WARNING, "dynamo.router.indexer"):
        cluster.indexer.take(wrong_batches(publisher)[kind])
        again = wrong_batches(publisher)[kind]
        cluster.indexer.take(msgspec.structs.replace(again, sequence=again.sequence + (again.sequence > 0)))
    await cluster.settled()
    assert cluster.counts[kind] >= 2
    assert len(caplog.records) <= 1
    assert cluster.held(range(8)) == {1: 2, 2: 2}


async def test_a_forged_removal_costs_only_its_worker(cluster):
    publisher, other = cluster.worker(1), cluster.worker(2)
    await cluster.settled()
    for each in (publisher, other):
        each.take(stored(list(range(8)), [1, 2]))
    cluster.deliver()
    first = sequence_hashes(np.arange(4, dtype=np.uint32), SIZE).tolist()
    forged = KvEventBatch(1, 0, publisher.epoch, 1, SIZE, [HashesRemoved(packed(*first))], "m")
    cluster.indexer.take(forged)
    assert cluster.held(range(8)) == {2: 2}


async def test_a_new_block_size_begins_anew(cluster):
    publisher = cluster.worker(1)
    publisher.take(stored(list(range(8)), [1, 2]))
    await cluster.settled()
    cluster.indexer.follow(key(1), 1, SIZE * 2, cluster.record(1))
    assert cluster.indexer.blocks() == 0


async def test_without_a_plane_losses_stay_lost(record):
    cluster = Cluster(record, plane=False)
    publisher = cluster.worker(1)
    for n in range(5):
        publisher.take(stored(list(range(100 * n, 100 * n + 4)), [n]))
    del cluster.wire[1]
    cluster.deliver()
    assert [cluster.held(range(100 * n, 100 * n + 4)) for n in range(5)] == [{1: 1}, {}, {1: 1}, {1: 1}, {1: 1}]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_the_wire_does_the_index_becomes_what_workers_hold(cluster, seed):
    rng = random.Random(seed)
    publishers = {number: cluster.worker(number) for number in (1, 2, 3)}
    caches = {number: EngineCache(rng, SIZE) for number in publishers}
    for step in range(400):
        number = rng.choice(list(publishers))
        publishers[number].take(EngineKvEvents([caches[number].step()]))
        fate = rng.random()
        if cluster.wire and fate < 0.1:
            cluster.wire.pop()
        elif cluster.wire and fate < 0.2:
            cluster.wire.append(cluster.wire[-1])
        if rng.random() < 0.3:
            rng.shuffle(cluster.wire)
            cluster.deliver()
            await asyncio.sleep(0)
        if step % 97 == 0:
            await cluster.settled()
    await cluster.settled()
    cluster.wire.clear()
    for number, publisher in publishers.items():  # a last event each shows the last hole
        publisher.take(stored([9, 9, 9, number], [1000 + number]))
    cluster.deliver()
    await cluster.settled()
    assert cluster.indexer.blocks() == len(set().union(*(cache.content() for cache in caches.values()))) + len(caches)
    for number, cache in caches.items():
        for block in cache.blocks.values():
            assert cluster.held(block.tokens)[number] == len(block.tokens) // SIZE
