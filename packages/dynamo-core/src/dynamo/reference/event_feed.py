"""Hands the prefix cache's events to their one consumer, however late or slow it is.

Nothing is kept while nobody listens. A consumer that arrives, or falls too far behind, has the engine announce the
whole content of its cache again (`BlockPool.announce`): AllBlocksCleared, and from there on everything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from dynamo.errors import EngineError
from dynamo.protocols.kv_events import AllBlocksCleared, EngineKvEvent, EngineKvEvents

__all__ = ["KvEventFeed"]


class KvEventFeed:
    """Lives on the event loop. `announce` asks the engine for its content, which arrives through `push` like the rest.

    A consumer that is `max_pending_steps` behind is resynchronised.
    """

    def __init__(self, announce: Callable[[], None], *, max_pending_steps: int = 4096) -> None:
        self._announce = announce
        self._max_pending_steps = max_pending_steps
        self._pending: deque[list[EngineKvEvent]] = deque()
        self._arrived = asyncio.Event()
        self._following = False
        self._synchronised = False
        self._consumed = False
        self._closed = False

    def push(self, events: list[EngineKvEvent]) -> None:
        """Add the events of one step."""
        if not events or not self._consumed:
            return
        if not self._following:
            cleared = [index for index, event in enumerate(events) if isinstance(event, AllBlocksCleared)]
            if not cleared:
                return
            # a new consumer knows of nothing that could be cleared
            events = events[cleared[-1] + (not self._synchronised) :]
            self._following = self._synchronised = True
        elif len(self._pending) >= self._max_pending_steps:
            self._pending.clear()
            self._following = False
            self._announce()
            return
        if events:
            self._pending.append(events)
            self._arrived.set()

    def close(self) -> None:
        """End the consumer's iteration."""
        self._closed = True
        self._arrived.set()

    async def events(self) -> AsyncIterator[EngineKvEvents]:
        """The consumer's side.

        Raises:
            EngineError: somebody consumes the events already.
        """
        if self._consumed:
            raise EngineError("the KV events of this engine have a consumer already")
        self._consumed = True
        self._announce()
        try:
            while not self._closed:
                while self._pending:
                    yield EngineKvEvents(self._pending.popleft())
                self._arrived.clear()
                if not self._pending and not self._closed:
                    await self._arrived.wait()
        finally:
            self._consumed = self._following = self._synchronised = False
            self._pending.clear()
