"""Turns an engine's KV events into ours: our hashes, our numbers, and a mirror that answers for what was lost.

One per worker process. The engine's block hashes are opaque and die here (DESIGN 4.2). Events wait until the outputs of
their event-loop pass are with the socket, and those that came together are published together: alone an event costs a
worker 50 us, among thirty 12. A router learns of a block a moment later; no client waits for its first token meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import msgspec

from dynamo.protocols.context import RequestContext
from dynamo.protocols.kv_events import (
    AllBlocksCleared,
    EngineKvEvent,
    EngineKvEvents,
    KvEventBatch,
    KvSnapshotRequest,
)
from dynamo.router.core.rank_mirror import REPLAY_BATCHES, RankMirror, RouterKvEvent

__all__ = ["REPLAY_BATCHES", "KvEventPublisher", "RankMirror"]

logger = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode

#: Runs of blocks in one snapshot item; a run is usually a whole prompt.
_SNAPSHOT_RUNS = 4096
#: What is published together is cut into messages at so many bytes of hashes: event planes bound a message, and the
#: batches that are kept for listeners are kept whole.
_MESSAGE_BYTES = 16 << 10


class KvEventPublisher:
    """Follows one engine's events and publishes them; answers `kv_snapshot`."""

    def __init__(self, instance_id: int, model: str, block_size: int, publish: Callable[[bytes], None]) -> None:
        self._instance_id = instance_id
        self._model = model
        self._block_size = block_size
        self._publish = publish
        self.epoch = time.time_ns()
        self._mirrors: dict[int, RankMirror] = {}
        self._waiting: list[EngineKvEvents] = []

    async def follow(self, events: AsyncIterator[EngineKvEvents]) -> None:
        """Publish until the engine's events end."""
        loop = asyncio.get_running_loop()
        async for batch in events:
            if not self._waiting:
                # In the pass after this one: what engines hand out in this one is sent at its end.
                loop.call_soon(self._publish_waiting)
            self._waiting.append(batch)
        self._publish_waiting()

    def take(self, engine_events: EngineKvEvents) -> None:
        """Translate, number and publish the events of one engine step."""
        self._publish_events(engine_events.dp_rank, engine_events.events)

    def _publish_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        ranks: dict[int, list[EngineKvEvent]] = {}
        for batch in waiting:
            ranks.setdefault(batch.dp_rank, []).extend(batch.events)
        for dp_rank, events in ranks.items():
            self._publish_events(dp_rank, events)

    def _publish_events(self, dp_rank: int, events: Sequence[EngineKvEvent]) -> None:
        mirror = self.mirror(dp_rank)
        for part in _messages(mirror.translate(events)):
            mirror.sequence += 1
            batch = self._batch(dp_rank, mirror.sequence, part)
            mirror.recent.append(batch)
            self._publish(_encode(batch))

    def mirror(self, dp_rank: int) -> RankMirror:
        """The mirror of one rank."""
        return self._mirrors.setdefault(dp_rank, RankMirror(self._block_size))

    async def snapshot(self, request: KvSnapshotRequest, context: RequestContext) -> AsyncIterator[KvEventBatch]:
        """The batches after ``request.after``, or the whole content as one or more batches with `snapshot` set."""
        mirror = self.mirror(request.dp_rank)
        recent = list(mirror.recent)
        if request.epoch == self.epoch and recent and recent[0].sequence <= request.after + 1:
            for batch in recent:
                if batch.sequence > request.after and not context.cancelled:
                    yield batch
            return
        # What the engine does while the parts are sent is published under later numbers.
        content, sequence = mirror.content(), mirror.sequence
        # The first part replaces what the listener knows, the others add to it; all are valid at one number.
        for start in range(0, max(1, len(content)), _SNAPSHOT_RUNS):
            if context.cancelled:
                return
            part = list(content[start : start + _SNAPSHOT_RUNS])
            yield self._batch(request.dp_rank, sequence, part, snapshot=start == 0)

    def _batch(
        self,
        dp_rank: int,
        sequence: int,
        events: Sequence[RouterKvEvent],
        *,
        snapshot: bool = False,
    ) -> KvEventBatch:
        return KvEventBatch(
            self._instance_id,
            dp_rank,
            self.epoch,
            sequence,
            self._block_size,
            list(events),
            self._model,
            snapshot,
        )


def _messages(events: Sequence[RouterKvEvent]) -> Iterator[list[RouterKvEvent]]:
    """`events`, in messages of not much more than `_MESSAGE_BYTES`."""
    message: list[RouterKvEvent] = []
    size = 0
    for event in events:
        message.append(event)
        size += 0 if isinstance(event, AllBlocksCleared) else len(event.hashes)
        if size >= _MESSAGE_BYTES:
            yield message
            message, size = [], 0
    if message:
        yield message
