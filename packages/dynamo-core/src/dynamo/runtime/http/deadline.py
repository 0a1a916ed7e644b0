"""A deadline that moves with every request and hardly ever passes; one per connection.

A timer of the event loop per move would be cancelled nearly always, three times a request. Here one timer goes on
running while the deadline moves away from it, and looks again when it fires.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Deadline"]


class Deadline:
    """Calls `passed` when the time that was last set is over."""

    __slots__ = ("_due", "_loop", "_passed", "_timer", "_timer_due")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def set(self, seconds: float) -> None:
        """Pass in `seconds` from now."""
        self._due = due = self._loop.time() + seconds
        if self._timer is None or due < self._timer_due:
            self._run(due)

    def clear(self) -> None:
        """Never pass, until it is set again."""
        self._due = None

    def close(self) -> None:
        """Never pass; lets go of the owner."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        # The clock of a timer may be a little coarser than the one that is read.
        if self._due > self._loop.time() + 0.001:
            self._run(self._due)
        else:
            self._due = None
            self._passed()
