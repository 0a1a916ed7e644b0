"""Keeps the prefix indexes of one model true to what its workers publish: order, gaps, restarts, warm starts.

The frontend has one per model. It asks a worker for its content (endpoint ``kv_snapshot``) when it meets it, when
batches were lost and when it began anew; meanwhile what was known of it stays in use. Whatever a worker says wrongly
is counted, logged once per kind and worker, and harmless to the others.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable

import msgspec
import numpy as np

from dynamo.errors import DynamoError
from dynamo.protocols.addressing import InstanceId, WorkerKey, format_instance_id
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.kv_events import (
    KV_SNAPSHOT_ENDPOINT,
    AllBlocksCleared,
    HashesStored,
    KvEventBatch,
    KvSnapshotRequest,
)
from dynamo.protocols.planes import RequestPlane
from dynamo.router.core.event_order import EventOrder, Verdict
from dynamo.router.core.tiered_index import TIERS, TieredIndex
from dynamo.runtime.client import encode_request, stream_items
from dynamo.runtime.context import Context
from dynamo.runtime.server import closing
from dynamo.runtime.tasks import within

__all__ = ["KvIndexer"]

logger = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 5.0
_ANSWER_TIMEOUT_SECONDS = 30.0
_TIER_OF = {medium: tier for tier, medium in enumerate(TIERS)}


class _Source:
    """One worker whose events are followed."""

    __slots__ = ("block_size", "complained", "order", "record", "silent", "slot", "task")

    def __init__(self, slot: int, block_size: int, record: InstanceRecord) -> None:
        self.slot = slot
        self.block_size = block_size
        self.record = record
        self.order = EventOrder()
        self.task: asyncio.Task[None] | None = None
        self.complained: set[str] = set()
        self.silent = False
        """Asked, and it did not answer."""


class KvIndexer:
    """One prefix index per block size, fed by the events of the workers that were added."""

    def __init__(
        self,
        plane: RequestPlane | None,
        *,
        max_blocks: int | None = None,
        count: Callable[[str, int], None] = lambda _kind, _number: None,
    ) -> None:
        """`plane` None: workers cannot be asked, and what was lost stays lost.

        `count` is told kinds of events (`dynamo.router.metrics`) and how many.
        """
        self._plane = plane
        self._max_blocks = max_blocks
        self._count = count
        self._indexes: dict[int, TieredIndex] = {}
        self._sources: dict[WorkerKey, _Source] = {}

    def index(self, block_size: int) -> TieredIndex:
        """The index of blocks of `block_size` tokens."""
        found = self._indexes.get(block_size)
        if found is None:
            found = self._indexes[block_size] = TieredIndex(self._max_blocks)
        return found

    def blocks(self) -> int:
        """Distinct blocks in all indexes."""
        return sum(map(len, self._indexes.values()))

    def asking(self) -> int:
        """Workers that are being asked for their content now, without those that do not answer."""
        return sum(source.order.asking and not source.silent for source in self._sources.values())

    def follow(self, worker: WorkerKey, slot: int, block_size: int, record: InstanceRecord) -> None:
        """Take the events of `worker` from now on, after its content. Called again with a new record it goes on."""
        source = self._sources.get(worker)
        if source is not None and source.block_size == block_size:
            source.record = record
            return
        if source is not None:
            self.forget(worker)
        source = self._sources[worker] = _Source(slot, block_size, record)
        if self._plane is not None:
            self._ask(self._plane, worker, source)

    def forget(self, worker: WorkerKey) -> None:
        """`worker` is gone."""
        source = self._sources.pop(worker, None)
        if source is not None:
            if source.task is not None:
                source.task.cancel()
            self.index(source.block_size).clear(source.slot)

    def take(self, batch: KvEventBatch) -> None:
        """A batch that was published."""
        worker = _worker_of(batch)
        source = self._sources.get(worker)
        if source is None:
            self._count("unknown_worker", 1)
            logger.debug("KV events of the unknown worker %s", _name(worker))
            return
        if batch.snapshot or not self._fits(worker, source, batch):
            self._complain(worker, source, "unasked_snapshot" if batch.snapshot else "wrong_block_size")
            return
        verdict = source.order.judge(batch)
        self._count(verdict.value, 1)
        if verdict is Verdict.APPLY:
            self._apply(worker, source, batch)
        elif verdict is Verdict.ASK:
            if batch.epoch != source.order.epoch:
                self.index(source.block_size).clear(source.slot)
            if self._plane is not None:
                self._ask(self._plane, worker, source)
            else:
                source.order.go_on_at(batch)
                self._apply(worker, source, batch)

    async def close(self) -> None:
        """Stop asking."""
        tasks = [source.task for source in self._sources.values() if source.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fits(self, worker: WorkerKey, source: _Source, batch: KvEventBatch) -> bool:
        return _worker_of(batch) == worker and batch.block_size == source.block_size

    def _apply(self, worker: WorkerKey, source: _Source, batch: KvEventBatch) -> None:
        index, slot = self.index(source.block_size), source.slot
        if batch.snapshot:
            index.clear(slot)
        conflicts = index.conflicts
        unknown = 0
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                index.clear(slot)
            elif len(event.hashes) % 8:
                self._complain(worker, source, "malformed")
            elif (tier := _TIER_OF.get(event.medium)) is None:
                self._count("other_medium", 1)
            elif isinstance(event, HashesStored):
                index.store(slot, np.frombuffer(event.hashes, "<u8").tolist(), event.parent, tier)
            else:
                unknown += index.remove(slot, np.frombuffer(event.hashes, "<u8").tolist(), tier)
        if unknown and not index.device.evicted_blocks:
            self._complain(worker, source, "unknown_removal", unknown)
        if index.conflicts != conflicts:
            self._complain(worker, source, "conflict", index.conflicts - conflicts)

    def _ask(self, plane: RequestPlane, worker: WorkerKey, source: _Source) -> None:
        source.order.asking = True
        source.task = asyncio.get_running_loop().create_task(self._ask_until_answered(plane, worker, source))

    async def _ask_until_answered(self, plane: RequestPlane, worker: WorkerKey, source: _Source) -> None:
        pause = _FIRST_RETRY_SECONDS
        while True:
            try:
                await within(_ANSWER_TIMEOUT_SECONDS, self._read_answer(plane, worker, source))
                break
            except (DynamoError, asyncio.TimeoutError, msgspec.MsgspecError) as error:
                source.silent = True
                self._count("ask_failed", 1)
                logger.debug("cannot read the KV blocks of %s: %s", _name(worker), error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_RETRY_SECONDS)
        source.task = None
        source.silent = False
        for batch in source.order.answered():
            self._apply(worker, source, batch)

    async def _read_answer(self, plane: RequestPlane, worker: WorkerKey, source: _Source) -> None:
        record = source.record
        target = InstanceRecord(
            record.namespace, record.component, KV_SNAPSHOT_ENDPOINT, record.instance_id, record.transports
        )
        order = source.order
        request = encode_request(KvSnapshotRequest(worker.dp_rank, order.epoch, order.sequence))
        context = Context(f"kv-snapshot-{uuid.uuid4().hex}")
        items = stream_items(plane, target, request, context, KvEventBatch)
        async with closing(items):
            async for batch in items:
                if not self._fits(worker, source, batch):
                    self._complain(worker, source, "wrong_block_size")
                elif order.judge_answer(batch) is Verdict.APPLY:
                    self._count("snapshot" if batch.snapshot else "replayed", 1)
                    self._apply(worker, source, batch)
                    await asyncio.sleep(0)  # a large cache comes in many parts: requests go on between them

    def _complain(self, worker: WorkerKey, source: _Source, kind: str, number: int = 1) -> None:
        self._count(kind, number)
        if kind not in source.complained:
            source.complained.add(kind)
            logger.warning("KV events of %s are wrong (%s); counted from now on, not logged", _name(worker), kind)


def _name(worker: WorkerKey) -> str:
    return f"{format_instance_id(worker.instance_id)} rank {worker.dp_rank}"


def _worker_of(batch: KvEventBatch) -> WorkerKey:
    return WorkerKey(InstanceId(batch.instance_id), batch.dp_rank)
