"""What waits for the socket of a `NatsLink`: bounded by messages, or by asking the writers to pause."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

__all__ = ["HIGH_WATER_BYTES", "LOW_WATER_BYTES", "Outbox"]

logger = logging.getLogger(__name__)

#: Above the first, writers are asked to pause, below the second to go on.
HIGH_WATER_BYTES = 8 << 20
LOW_WATER_BYTES = 2 << 20


class Outbox:
    """Messages (subject, payload, reply subject) in order."""

    def __init__(self, limit_messages: int, on_pressure: Callable[[bool], None] | None) -> None:
        """With `limit_messages` the oldest are dropped beyond it; 0: none is."""
        self._limit_messages = limit_messages
        self._on_pressure = on_pressure
        self._messages: deque[tuple[str, bytes, str]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._dropped = 0
        self.congested = False
        """Whether writers should pause."""

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, subject: str, payload: bytes, reply: str) -> None:
        """Add a message."""
        if self._limit_messages and len(self._messages) >= self._limit_messages:
            self._pop()
            self._dropped += 1
            if self._dropped == 1:
                logger.warning("%d messages wait for NATS: dropping the oldest", self._limit_messages)
        self._messages.append((subject, payload, reply))
        self._bytes += len(payload)
        self._filled.set()
        if self._bytes > HIGH_WATER_BYTES:
            self._press(True)

    def take(self) -> tuple[str, bytes, str]:
        """Remove the oldest message; there must be one."""
        message = self._pop()
        if self._bytes < LOW_WATER_BYTES:
            self._press(False)
        if not self._messages and self._dropped:
            logger.warning("%d messages to NATS were dropped", self._dropped)
            self._dropped = 0
        return message

    async def wait(self) -> None:
        """Until there is a message."""
        while not self._messages:
            self._filled.clear()
            await self._filled.wait()

    def clear(self) -> None:
        """Forget all messages."""
        self._messages.clear()
        self._bytes = 0
        self._press(False)

    def _pop(self) -> tuple[str, bytes, str]:
        message = self._messages.popleft()
        self._bytes -= len(message[1])
        return message

    def _press(self, high: bool) -> None:
        if high != self.congested:
            self.congested = high
            if self._on_pressure is not None:
                self._on_pressure(high)
