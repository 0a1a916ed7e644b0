"""The streams that an engine has open, by request id, and the end of them all; engines keep theirs in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Generic, TypeVar

from dynamo.errors import Draining, InvalidRequest

__all__ = ["OpenStreams"]

S = TypeVar("S")

logger = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = 1.0


class OpenStreams(Generic[S]):
    """What an engine knows of each stream, from its acceptance to its end."""

    def __init__(self) -> None:
        self._streams: dict[str, S] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[S]:
        return iter(list(self._streams.values()))

    def get(self, request_id: str) -> S | None:
        """The stream of this request, while it is open."""
        return self._streams.get(request_id)

    def check(self, request_id: str) -> None:
        """Whether a stream of this id may be opened.

        Raises:
            Draining: after :meth:`drain`.
            InvalidRequest: the id is in use.
        """
        if self._draining:
            raise Draining("this worker is draining", retry_after_seconds=_RETRY_AFTER_SECONDS)
        if request_id in self._streams:
            raise InvalidRequest(f"request id {request_id!r} is in use", param="request_id")

    def open(self, request_id: str, stream: S) -> None:
        """Enter a stream whose id was checked."""
        self._streams[request_id] = stream
        self._idle.clear()

    def close(self, request_id: str) -> None:
        """Strike it out."""
        del self._streams[request_id]
        if not self._streams:
            self._idle.set()

    async def drain(self, deadline_seconds: float) -> None:
        """Refuse new streams; return when the open ones have ended, or after `deadline_seconds`."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), deadline_seconds)
        except asyncio.TimeoutError:
            logger.warning("%d requests were still running at the end of the drain", len(self._streams))
