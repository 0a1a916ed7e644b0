"""Brings the KV events of one engine rank into the form that the router's index takes.

What a worker host does beside its engine (`dynamo.worker.kv_publisher`) is done here from afar, for servers that have
no worker host. `dynamo.frontend.select.workers` has one listener per rank of a server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import zmq.asyncio

from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.kv_copies import CopyCounter
from dynamo.protocols.kv_events import AllBlocksCleared, BlockStored, EngineKvEvent, EngineKvEvents, KvEventBatch
from dynamo.protocols.kv_wire import Drops
from dynamo.router.core.rank_mirror import RankMirror, RouterKvEvent
from dynamo.runtime.kv_event_stream import KvEventSource, KvEventStream, Timing

__all__ = ["EngineListener", "ListenedRank"]

#: There may be thousands of ranks, most of them silent.
_TIMING = Timing(quiet_seconds=5.0, replay_seconds=5.0)
#: Blocks of one rank; far beyond any engine's cache, so whoever says more loses what was said.
_MOST_BLOCKS = 4_000_000


class ListenedRank(NamedTuple):
    """One rank and where it publishes."""

    worker: WorkerKey
    model: str
    block_size: int
    source: KvEventSource


class EngineListener:
    """One subscription and a task. :meth:`close` must follow.

    Raises:
        zmq.ZMQError: the endpoint cannot be used.
    """

    def __init__(self, context: zmq.asyncio.Context, rank: ListenedRank, timing: Timing = _TIMING) -> None:
        self._rank = rank
        self._mirror = RankMirror(rank.block_size)
        self._copies = CopyCounter()
        self._epoch = time.time_ns()
        self._drops = Drops(rank.source.endpoint)
        self._stream = KvEventStream(context, rank.source, self._drops, timing)
        self._task: asyncio.Task[None] | None = None
        self._deliver: Callable[[KvEventBatch], None] = lambda _batch: None

    def start(self, deliver: Callable[[KvEventBatch], None]) -> None:
        """Hand the events to `deliver` from now on."""
        self._deliver = deliver
        self._task = asyncio.get_running_loop().create_task(self._stream.follow(self._take))

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._stream.close()

    def to_json(self) -> dict[str, Any]:
        """For clients."""
        return {
            "endpoint": self._rank.source.endpoint,
            "blocks": len(self._mirror),
            "next_message": self._stream.next_number,
            "dropped": dict(self._drops.counts),
        }

    async def _take(self, events: list[EngineKvEvent]) -> None:
        size = self._rank.block_size
        fitting = [event for event in events if not isinstance(event, BlockStored) or event.block_size == size]
        if len(fitting) < len(events):
            self._drops.add("a wrong block size", f"its blocks have not the {size} tokens that it is registered with")
        if max(len(self._mirror), len(self._copies)) > _MOST_BLOCKS:
            self._drops.add("a cache that cannot be true", f"more than {_MOST_BLOCKS} blocks")
            fitting.insert(0, AllBlocksCleared())
        known = self._copies.first_and_last(EngineKvEvents(fitting)).events
        if known == [AllBlocksCleared()] and not len(self._mirror):
            return
        self._publish(self._mirror.translate(known))

    def _publish(self, events: list[RouterKvEvent]) -> None:
        if events:
            self._mirror.sequence += 1
            rank = self._rank
            self._deliver(
                KvEventBatch(*rank.worker, self._epoch, self._mirror.sequence, rank.block_size, events, rank.model)
            )
