"""Turns an engine's KV events into ours: our hashes, our numbers, and a mirror that answers for what was lost.

One per worker process. The engine's block hashes are opaque and die here (DESIGN 4.2).
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec
import numpy as np

from dynamo.protocols.context import RequestContext
from dynamo.protocols.hashing import HashState, block_hashes, extend, seed_of
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

__all__ = ["REPLAY_BATCHES", "KvEventPublisher", "RankMirror"]

logger = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode

#: Batches that are kept for listeners that missed some; older ones cost a whole snapshot.
REPLAY_BATCHES = 1024
#: Runs of blocks in one snapshot item; a run is usually a whole prompt.
_SNAPSHOT_RUNS = 4096


class _Block(NamedTuple):
    """A stored block: its sequence hash, its parent's, and the state that its children go on from."""

    sequence_hash: int
    parent: int | None
    state: HashState


class RankMirror:
    """What one data-parallel rank has stored, by the engine's hashes and by ours."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.sequence = -1
        self.orphans = 0
        """Blocks that were dropped because their parent is unknown."""
        self._blocks: dict[tuple[str, int | bytes], _Block] = {}
        self._copies: Counter[tuple[str, int]] = Counter()
        self.recent: deque[KvEventBatch] = deque(maxlen=REPLAY_BATCHES)

    def __len__(self) -> int:
        return len(self._blocks)

    def stored(self, event: BlockStored) -> HashesStored | None:
        """Enter blocks; None when nothing new is known of them."""
        parent = self._parent(event)
        if parent is None and event.parent_hash is not None:
            self.orphans += len(event.block_hashes)
            return None
        state = parent.state if parent else HashState(seed_of(event.lora, event.cache_salt), 0)
        tokens = np.asarray(event.token_ids, dtype=np.uint32)
        hashes, values = extend(state, block_hashes(tokens, event.block_size))
        before = parent.sequence_hash if parent else None
        previous = before
        for index, (opaque, ours) in enumerate(zip(event.block_hashes, hashes.tolist(), strict=False)):
            child = HashState(int(values[index]), state.blocks + index + 1)
            if (event.medium, opaque) not in self._blocks:
                self._copies[event.medium, ours] += 1
            self._blocks[event.medium, opaque] = _Block(ours, previous, child)
            previous = ours
        return HashesStored(hashes.astype("<u8").tobytes(), before, event.medium)

    def removed(self, event: BlockRemoved) -> HashesRemoved | None:
        """Drop blocks; None when none of them was known."""
        gone = []
        for opaque in event.block_hashes:
            block = self._blocks.pop((event.medium, opaque), None)
            if block is None:
                continue
            key = (event.medium, block.sequence_hash)
            self._copies[key] -= 1
            # An engine may hold one content twice, under two hashes of its own: the last copy counts.
            if not self._copies[key]:
                del self._copies[key]
                gone.append(block.sequence_hash)
        return HashesRemoved(np.asarray(gone, dtype="<u8").tobytes(), event.medium) if gone else None

    def clear(self) -> None:
        """Everything is gone."""
        self._blocks.clear()
        self._copies.clear()

    def content(self) -> list[HashesStored]:
        """All blocks, as runs of parents and children; parents come before their children."""
        tails: dict[tuple[str, int | None], tuple[int | None, list[int]]] = {}
        runs: list[tuple[str, int | None, list[int]]] = []
        for (medium, _), block in sorted(self._blocks.items(), key=lambda item: item[1].state.blocks):
            first_parent, run = tails.pop((medium, block.parent), (block.parent, []))
            if not run:
                runs.append((medium, first_parent, run))
            run.append(block.sequence_hash)
            tails[medium, block.sequence_hash] = (first_parent, run)
        return [HashesStored(np.asarray(run, dtype="<u8").tobytes(), parent, medium) for medium, parent, run in runs]

    def _parent(self, event: BlockStored) -> _Block | None:
        if event.parent_hash is None:
            return None
        for medium in (event.medium, "device", "host", "disk"):
            block = self._blocks.get((medium, event.parent_hash))
            if block is not None:
                return block
        return None


class KvEventPublisher:
    """Follows one engine's events and publishes them; answers `kv_snapshot`."""

    def __init__(self, instance_id: int, model: str, block_size: int, publish: Callable[[bytes], None]) -> None:
        self._instance_id = instance_id
        self._model = model
        self._block_size = block_size
        self._publish = publish
        self.epoch = time.time_ns()
        self._mirrors: dict[int, RankMirror] = {}

    async def follow(self, events: AsyncIterator[EngineKvEvents]) -> None:
        """Publish until the engine's events end."""
        async for batch in events:
            self.take(batch)

    def take(self, engine_events: EngineKvEvents) -> None:
        """Translate, number and publish the events of one engine step."""
        mirror = self.mirror(engine_events.dp_rank)
        translated: list[HashesStored | HashesRemoved | AllBlocksCleared] = []
        for event in engine_events.events:
            if isinstance(event, BlockStored):
                stored = mirror.stored(event)
                translated += [stored] if stored else []
            elif isinstance(event, BlockRemoved):
                removed = mirror.removed(event)
                translated += [removed] if removed else []
            else:
                mirror.clear()
                translated.append(event)
        if not translated:
            return
        mirror.sequence += 1
        batch = self._batch(engine_events.dp_rank, mirror, translated)
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
        content = mirror.content()
        # The first part replaces what the listener knows, the others add to it; all are valid at one number.
        for start in range(0, max(1, len(content)), _SNAPSHOT_RUNS):
            if context.cancelled:
                return
            part = list(content[start : start + _SNAPSHOT_RUNS])
            yield self._batch(request.dp_rank, mirror, part, snapshot=start == 0)

    def _batch(
        self,
        dp_rank: int,
        mirror: RankMirror,
        events: list[HashesStored | HashesRemoved | AllBlocksCleared] | list[HashesStored],
        *,
        snapshot: bool = False,
    ) -> KvEventBatch:
        return KvEventBatch(
            self._instance_id,
            dp_rank,
            self.epoch,
            mirror.sequence,
            self._block_size,
            list(events),
            self._model,
            snapshot,
        )
