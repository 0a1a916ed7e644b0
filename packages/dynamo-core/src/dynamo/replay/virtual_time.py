"""The clock of a simulation, and what is to happen at a time. `simulation` moves it; the router's queue goes by it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

__all__ = ["VirtualAlarm", "VirtualTime"]


class VirtualAlarm:
    """Calls back once, unless it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call."""
        self.callback = None


class VirtualTime:
    """Seconds since the first arrival; see `dynamo.router.queue.QueueTime`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._alarms: list[tuple[float, int, VirtualAlarm]] = []

    def now(self) -> float:
        """Where the simulation is."""
        return self._now

    def move(self, now: float) -> None:
        """It is `now`, which is not before the alarms that have rung."""
        self._now = now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> VirtualAlarm:
        """Call `callback` in :meth:`ring`, so much later."""
        alarm = VirtualAlarm(callback)
        heapq.heappush(self._alarms, (self._now + seconds, next(self._order), alarm))
        return alarm

    def next_alarm(self) -> float:
        """When :meth:`ring` is due; infinity: never."""
        while self._alarms and self._alarms[0][2].callback is None:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else float("inf")

    def ring(self) -> None:
        """Go to the next alarm, and call."""
        self._now, _, alarm = heapq.heappop(self._alarms)
        if alarm.callback is not None:
            alarm.callback()
