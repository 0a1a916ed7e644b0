"""A rank's events arrive as the router's, whatever is lost, begins anew or is malformed on the way."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import zmq.asyncio

from dynamo.frontend.select.listener import EngineListener, ListenedRank
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.hashing import sequence_hashes
from dynamo.router.core.prefix_index import PrefixIndex
from dynamo.runtime.kv_event_stream import KvEventSource, Timing
from dynamo.testing.engine_publisher import EnginePublisher, stored_event

SIZE = 4
TIMEOUT = 20.0
QUICK = Timing(quiet_seconds=0.05, replay_seconds=2.0)


class Following:
    """An engine, a listener, and the index that its batches make."""

    def __init__(self, context, *, replay=True):
        self.engine = EnginePublisher()
        self.index = PrefixIndex()
        self.batches = []
        replay_endpoint = f"tcp://127.0.0.1:{self.engine.replay_port}" if replay else None
        source = KvEventSource(f"tcp://127.0.0.1:{self.engine.port}", replay_endpoint, "kv")
        rank = ListenedRank(WorkerKey(InstanceId(7), 1), "m", SIZE, source)
        self.listener = EngineListener(context, rank, QUICK)
        self.listener.start(self.take)

    def take(self, batch):
        assert (batch.instance_id, batch.dp_rank, batch.model) == (7, 1, "m")
        assert batch.sequence == len(self.batches)
        self.batches.append(batch)
        for event in batch.events:
            if not hasattr(event, "hashes"):
                self.index.clear(0)
            elif hasattr(event, "parent"):
                self.index.store(0, np.frombuffer(event.hashes, "<u8").tolist(), event.parent)
            else:
                self.index.remove(0, np.frombuffer(event.hashes, "<u8").tolist())

    def overlap(self, tokens):
        return self.index.match(sequence_hashes(np.array(tokens, np.uint32), SIZE).tolist()).get(0, 0)

    @property
    def dropped(self):
        return self.listener.to_json()["dropped"]

    async def until(self, condition):
        async def poll():
            while not condition():
                await asyncio.sleep(0.005)

        await asyncio.wait_for(poll(), TIMEOUT)


@pytest.fixture
async def follow():
    context = zmq.asyncio.Context()
    made = []

    async def make(**options):
        made.append(Following(context, **options))
        await made[-1].engine.subscribed()
        return made[-1]

    yield make
    for following in made:
        await following.listener.close()
        await following.engine.close()
    context.term()


def stored(first, blocks, parent=None, size=SIZE):
    """Blocks `first`, `first` + 1, ... whose tokens are their numbers."""
    names = range(first, first + blocks)
    return stored_event(names, [name for name in names for _ in range(size)], parent=parent, block_size=size)


def prompt(blocks, first=1):
    return [name for name in range(first, first + blocks) for _ in range(SIZE)]


async def test_stored_and_removed_blocks(follow):
    made = await follow()
    await made.engine.publish(stored(1, 3))
    await made.engine.publish(stored(4, 2, parent=3))
    await made.until(lambda: made.overlap(prompt(6)) == 5)
    await made.engine.publish({"type": "BlockRemoved", "block_hashes": [5], "medium": "GPU"})
    await made.until(lambda: made.overlap(prompt(6)) == 4)
    await made.engine.publish({"type": "AllBlocksCleared"})
    await made.until(lambda: made.overlap(prompt(6)) == 0)


async def test_the_last_copy_of_a_block_counts(follow):
    made = await follow()
    for _ in range(2):  # two requests of one step computed it
        await made.engine.publish(stored(1, 3))
    await made.engine.publish({"type": "BlockRemoved", "block_hashes": [3], "medium": "GPU"}, stored(10, 1))
    await made.until(lambda: made.overlap(prompt(1, first=10)) == 1)
    assert made.overlap(prompt(3)) == 3
    await made.engine.publish({"type": "BlockRemoved", "block_hashes": [3], "medium": "GPU"})
    await made.until(lambda: made.overlap(prompt(3)) == 2)


async def test_what_was_lost_is_asked_for(follow):
    made = await follow()
    await made.engine.publish(stored(1, 2))
    await made.engine.publish(stored(3, 2, parent=2), lose=True)
    await made.engine.publish(stored(5, 1, parent=4))
    await made.until(lambda: made.overlap(prompt(6)) == 5)
    assert not made.dropped
    assert made.listener.to_json()["next_message"] == 3


async def test_without_a_replay_endpoint_a_loss_clears(follow):
    made = await follow(replay=False)
    await made.engine.publish(stored(1, 2))
    await made.until(lambda: made.overlap(prompt(3)) == 2)
    await made.engine.publish(stored(3, 1, parent=2), lose=True)
    await made.engine.publish(stored(10, 2))
    await made.until(lambda: made.overlap(prompt(2, first=10)) == 2)
    assert made.overlap(prompt(3)) == 0
    assert made.dropped["messages that the engine has no more"] == 1


async def test_an_engine_that_began_anew_holds_nothing(follow):
    made = await follow()
    await made.engine.publish(stored(1, 2))
    await made.until(lambda: made.overlap(prompt(2)) == 2)
    made.engine.begin_anew()
    await made.engine.publish(stored(10, 1))
    await made.until(lambda: made.overlap(prompt(1, first=10)) == 1)
    assert made.overlap(prompt(2)) == 0


async def test_nonsense_is_counted_and_harmless(follow):
    made = await follow()
    await made.engine.publish(payload=b"\xc1")
    for frames in ([b"kv"], [b"kv", b"short", b""]):
        await made.engine.socket.send_multipart(frames)
    await made.engine.publish(stored(1, 2, size=8), stored(20, 1), {"type": "Other"})
    await made.until(lambda: made.overlap(prompt(1, first=20)) == 1)
    assert made.dropped == {
        "an unreadable message": 1,
        "a message of another form": 2,
        "an unreadable event": 1,
        "a wrong block size": 1,
    }
