"""The pace of the echo engine: streams take their steps together, as the sequences of an engine's batch do.

One timer serves all streams, so that hundreds of them cost a worker little more than one.
"""

from __future__ import annotations

import asyncio

__all__ = ["StepClock"]


class StepClock:
    """Steps every `seconds`, as long as somebody waits for the next one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: list[asyncio.Future[None]] = []
        self._due = 0.0

    def next_step(self) -> asyncio.Future[None]:
        """Done at the next step; whoever stops waiting before may set its result."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        if not self._waiting:
            # From the last step, not from now: what the streams do in between must not slow the pace down.
            self._due = max(self._due + self._seconds, loop.time())
            loop.call_at(self._due, self._step)
        self._waiting.append(waiter)
        return waiter

    def _step(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
