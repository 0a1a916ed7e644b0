"""Turns the core's cache events into engine KV events, with token ids, and keeps them for their one consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from dynamo.errors import EngineError
from dynamo.mocker.core import BlocksRemoved, CoreEvent
from dynamo.protocols.kv_events import BlockRemoved, BlockStored, EngineKvEvents

__all__ = ["EVENT_BACKLOG_LIMIT", "BlockContent", "KvEventQueue"]

#: Batches that may wait for the consumer. Beyond it nothing new is cached, which makes no events either.
EVENT_BACKLOG_LIMIT = 10_000


class BlockContent(Protocol):
    """What the key of every sequence gives: the content of its blocks."""

    @property
    def cache_salt(self) -> str | None:
        """Salt of the request."""
        ...

    def tokens(self, start: int, stop: int) -> list[int]:
        """Ids ``[start, stop)`` of prompt and output."""
        ...


class KvEventQueue:
    """Events of all ranks, in order."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._batches: asyncio.Queue[EngineKvEvents] = asyncio.Queue()
        self._consumed = False

    @property
    def full(self) -> bool:
        """Whether the consumer is so far behind that nothing should be added."""
        return self._batches.qsize() >= EVENT_BACKLOG_LIMIT

    def put(self, events: list[CoreEvent], dp_rank: int) -> None:
        """Add the events of one step."""
        if events:
            self._batches.put_nowait(EngineKvEvents([self._translate(event) for event in events], dp_rank))

    async def follow(self) -> AsyncIterator[EngineKvEvents]:
        """The consumer's side.

        Raises:
            EngineError: somebody consumes the events already.
        """
        if self._consumed:
            raise EngineError("the KV events of this engine have a consumer already")
        self._consumed = True
        try:
            while True:
                yield await self._batches.get()
        finally:
            self._consumed = False

    def _translate(self, event: CoreEvent) -> BlockStored | BlockRemoved:
        if isinstance(event, BlocksRemoved):
            return BlockRemoved([*event.names])
        sequence, size = event.sequence, self._block_size
        content: BlockContent = sequence.key
        return BlockStored(
            list(sequence.names[event.start : event.stop]),
            content.tokens(event.start * size, event.stop * size),
            size,
            parent_hash=sequence.names[event.start - 1] if event.start else None,
            cache_salt=content.cache_salt,
        )
