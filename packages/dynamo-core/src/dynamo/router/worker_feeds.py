"""Hands what workers publish, load and KV events, to the candidate table of their model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from dynamo.protocols.kv_events import KV_EVENTS_SUBJECT, KvEventBatch
from dynamo.protocols.load import LOAD_SUBJECT, WorkerLoad
from dynamo.router.candidates import CandidateTable
from dynamo.runtime.distributed import DistributedRuntime

__all__ = ["WorkerFeeds"]

logger = logging.getLogger(__name__)

_decode_load = msgspec.msgpack.Decoder(WorkerLoad).decode
_decode_events = msgspec.msgpack.Decoder(KvEventBatch).decode


class WorkerFeeds:
    """Listeners of the event plane; `find` gives the table of a model's name, None for one that is not routed to."""

    def __init__(self, find: Callable[[str], CandidateTable | None]) -> None:
        self._find = find
        self._unreadable = False

    async def subscribe(self, runtime: DistributedRuntime, *, caches: bool) -> None:
        """Listen; without `caches` to loads alone. Nothing happens where there is no event plane."""
        plane = runtime.event_plane
        if plane is not None:
            await plane.subscribe(LOAD_SUBJECT, self.on_load)
            if caches:
                await plane.subscribe(KV_EVENTS_SUBJECT, self.on_kv_events)

    def on_load(self, payload: bytes) -> None:
        """What a worker says of its load."""
        try:
            load = _decode_load(payload)
        except msgspec.MsgspecError as error:
            logger.warning("a load message is not readable: %s", error)
            return
        table = self._find(load.model)
        if table is not None:
            table.take_load(load, time.monotonic())

    def on_kv_events(self, payload: bytes) -> None:
        """How a worker's cache has changed."""
        try:
            batch = _decode_events(payload)
        except msgspec.MsgspecError as error:
            # One broken worker could fill the log.
            logger.log(logging.DEBUG if self._unreadable else logging.WARNING, "unreadable KV events: %s", error)
            self._unreadable = True
            return
        table = self._find(batch.model)
        if table is not None:
            table.take_events(batch)
