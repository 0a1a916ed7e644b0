"""KV events over real sockets: late subscribers, holes, replays, restarts, nonsense."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import msgspec
import pytest
import zmq
import zmq.asyncio

from dynamo.protocols.kv_events import AllBlocksCleared, BlockStored, EngineKvEvent
from dynamo.protocols.kv_wire import Drops
from dynamo.runtime.kv_event_stream import KvEventSource, KvEventStream, Timing
from dynamo.testing.engine_publisher import EnginePublisher, stored_event

TIMEOUT = 15.0
QUICK = Timing(quiet_seconds=0.02, replay_seconds=0.5)
#: Silence is not asked about within a test.
PATIENT = Timing(quiet_seconds=60.0, replay_seconds=0.5)


def stored(*hashes: int) -> dict:
    return stored_event(hashes, range(2 * len(hashes)), block_size=2)


class Following:
    """A stream of a publisher, and what it hands on."""

    def __init__(self, publisher: EnginePublisher, *, replay: bool | str = True, timing: Timing = QUICK) -> None:
        self.context = zmq.asyncio.Context()
        self.drops = Drops()
        replay_endpoint = f"tcp://127.0.0.1:{publisher.replay_port}" if replay is True else replay or None
        source = KvEventSource(f"tcp://127.0.0.1:{publisher.port}", replay_endpoint, "kv")
        self.stream = KvEventStream(self.context, source, self.drops, timing)
        self.items: asyncio.Queue[list[EngineKvEvent]] = asyncio.Queue()
        self._task = asyncio.create_task(self.stream.follow(self.items.put))

    @property
    def dropped(self) -> Counter[str]:
        return self.drops.counts

    async def take(self, count: int) -> list:
        """The hash of each stored block of `count` messages; "cleared" for a clear."""
        seen = []
        for _ in range(count):
            for event in await asyncio.wait_for(self.items.get(), TIMEOUT):
                seen += ["cleared"] if isinstance(event, AllBlocksCleared) else event.block_hashes
        return seen

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.stream.close()
        self.context.destroy(linger=0)


@pytest.fixture
async def cleanup() -> AsyncIterator[list]:
    """What is closed at the end, the last first."""
    made: list = []
    yield made
    for item in reversed(made):
        await item.close()


@pytest.fixture
def publish(cleanup):
    def make(*ports, **options) -> EnginePublisher:
        cleanup.append(EnginePublisher(*ports, **options))
        return cleanup[-1]

    return make


@pytest.fixture
def follow(cleanup):
    def make(publisher, **options) -> Following:
        cleanup.append(Following(publisher, **options))
        return cleanup[-1]

    return make


async def test_a_late_subscriber_hears_everything_from_the_start(publish, follow):
    publisher = publish()
    for block in range(5):
        await publisher.publish(stored(block))
    events = follow(publisher)
    assert await events.take(5) == [0, 1, 2, 3, 4]
    await publisher.subscribed()
    await publisher.publish(stored(5))
    assert await events.take(1) == [5]
    assert not events.dropped


async def test_a_subscriber_may_come_before_the_engine(publish, follow):
    reserved = publish()
    await reserved.close()
    events = follow(reserved)
    publisher = publish(reserved.port, reserved.replay_port)
    await publisher.publish(stored(1))
    assert await asyncio.wait_for(events.items.get(), TIMEOUT) == [BlockStored([1], [0, 1], 2)]


async def test_a_hole_is_filled_by_a_replay(publish, follow):
    publisher = publish()
    events = follow(publisher, timing=PATIENT)
    await publisher.subscribed()
    await publisher.publish(stored(0))
    assert await events.take(1) == [0]
    await publisher.publish(stored(1), lose=True)
    await publisher.publish(stored(2), lose=True)
    await publisher.publish(stored(3))
    assert await events.take(3) == [1, 2, 3]
    assert publisher.asked == [1]
    await publisher.publish(stored(4))
    assert await events.take(1) == [4], "what was replayed does not come twice"


async def test_a_loss_before_a_silence_is_found(publish, follow):
    publisher = publish()
    events = follow(publisher)
    await publisher.subscribed()
    await publisher.publish(stored(0))
    assert await events.take(1) == [0]
    await publisher.publish(stored(1), lose=True)
    assert await events.take(1) == [1]


async def test_a_replay_with_holes_is_asked_for_again(publish, follow):
    publisher = publish(replay_limit=3)
    for block in range(10):
        await publisher.publish(stored(block))
    events = follow(publisher)
    assert await events.take(10) == list(range(10))
    assert publisher.asked[:3] == [0, 3, 6]
    assert not events.dropped


async def test_what_the_engine_has_forgotten_clears_the_cache(publish, follow):
    publisher = publish(buffer_steps=2)
    for block in range(5):
        await publisher.publish(stored(block))
    events = follow(publisher)
    assert await events.take(3) == ["cleared", 3, 4]
    assert events.dropped["messages that the engine has no more"] == 1


async def test_without_a_replay_endpoint_a_hole_clears_the_cache(publish, follow):
    publisher = publish()
    events = follow(publisher, replay=False)
    await publisher.subscribed()
    await publisher.publish(stored(0))
    assert await events.take(1) == [0]
    await publisher.publish(stored(1), lose=True)
    await publisher.publish(stored(2))
    assert await events.take(2) == ["cleared", 2]


async def test_a_replay_endpoint_that_does_not_answer_is_like_none(publish, follow):
    publisher = publish()
    await publisher.stop_answering()
    events = follow(publisher, timing=Timing(quiet_seconds=60, replay_seconds=0.05))
    await publisher.subscribed()
    await publisher.publish(stored(0), lose=True)
    await publisher.publish(stored(1))
    assert await events.take(2) == ["cleared", 1]


async def test_a_replay_endpoint_that_cannot_be_connected_to_is_like_none(publish, follow):
    publisher = publish()
    events = follow(publisher, replay="tcp://no such host:1")
    await publisher.subscribed()
    await publisher.publish(stored(0), lose=True)
    await publisher.publish(stored(1))
    assert await events.take(2) == ["cleared", 1]
    assert events.dropped["a replay endpoint that cannot be used"] > 0


async def test_a_new_engine_at_the_same_address_begins_anew(publish, follow):
    publisher = publish()
    for block in range(3):
        await publisher.publish(stored(block))
    events = follow(publisher)
    assert await events.take(3) == [0, 1, 2]
    await publisher.close()
    successor = publish(publisher.port, publisher.replay_port)
    await successor.subscribed()
    for block in (7, 8):
        await successor.publish(payload=msgspec.msgpack.encode([2000.0 + block, [stored(block)], 0]))
    assert await events.take(3) == ["cleared", 7, 8]


async def test_messages_that_mean_nothing_are_counted(publish, follow):
    publisher = publish()
    events = follow(publisher)
    await publisher.subscribed()
    await publisher.publish(payload=b"\xc1")
    await publisher.socket.send_multipart([b"kv", b"short", b""])
    await publisher.socket.send_multipart([b"kv"])
    await publisher.publish(stored(1))
    assert await events.take(1) == [1]
    assert events.dropped == {"an unreadable message": 1, "a message of another form": 2}


async def test_other_topics_are_not_heard(publish, follow):
    publisher = publish()
    events = follow(publisher)
    await publisher.subscribed()
    await publisher.socket.send_multipart([b"other", bytes(8), b""])
    await publisher.publish(stored(1))
    assert await events.take(1) == [1]
    assert not events.dropped


async def test_an_endpoint_that_cannot_be_connected_to_is_an_error():
    context = zmq.asyncio.Context()
    with pytest.raises(zmq.ZMQError):
        KvEventStream(context, KvEventSource("tcp://no such host:5557"), Drops(), QUICK)
    context.term()
