"""The body of a request in pieces, for routes whose bodies are too large to be held in memory (file uploads).

The handler runs as soon as the head is there, so that a request that it refuses is refused before its body is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dynamo.errors import Cancelled

__all__ = ["BodyStream"]

#: What may wait in memory for its handler; beyond it the client is not read from.
_WAITING_BYTES = 1 << 20


class BodyStream:
    """Filled by the connection, read by one handler. `pause` and `resume` hold the client back and let it go on."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._ended = False
        self._lost = False
        self._changed = asyncio.Event()
        self.paused = False
        """Whether the client waits for the handler."""

    def feed(self, data: bytes) -> None:
        """A piece has come."""
        self._chunks.append(data)
        self._waiting_bytes += len(data)
        if not self.paused and self._waiting_bytes > _WAITING_BYTES:
            self.paused = True
            self._pause()
        self._changed.set()

    def end(self) -> None:
        """The body is whole."""
        self._ended = True
        self._changed.set()

    def lose(self) -> None:
        """The rest will not come: the client is gone, or was refused."""
        self._lost = True
        self._changed.set()

    async def read(self) -> bytes:
        """Everything that has come since the last call, at least one byte; empty at the end.

        Raises:
            Cancelled: the rest will not come.
        """
        while not (self._chunks or self._ended or self._lost):
            self._changed.clear()
            await self._changed.wait()
        if self._lost:
            raise Cancelled("the request was given up before its body was whole")
        data = b"".join(self._chunks)
        self._chunks, self._waiting_bytes = [], 0
        if self.paused:
            self.paused = False
            self._resume()
        return data
