"""Runs one rank's core on the event loop and lets time pass as its steps say. Owned by `engine`, one per rank."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from dynamo.mocker.core import EngineCore, StepResult
from dynamo.mocker.sequence import Sequence
from dynamo.runtime.tasks import within

__all__ = ["Pace", "Rank"]

#: A loop that is later than this has been held up; it goes on from now, without hurrying after what is lost.
_LATEST_SECONDS = 0.1


class Pace:
    """Engine time: `speedup_ratio` seconds of it pass in one real second; with 0 it jumps ahead without waiting."""

    def __init__(
        self,
        speedup_ratio: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` and `sleep` are real time, in seconds."""
        self._ratio = speedup_ratio
        self._clock = clock
        self._sleep = sleep
        self._due = 0.0
        self._now = 0.0

    def now(self) -> float:
        """Engine time in seconds."""
        return self._clock() * self._ratio if self._ratio else self._now

    async def spend(self, seconds: float) -> None:
        """Let `seconds` of engine time pass; sleeps that are too long are made up for by the next ones."""
        if not self._ratio:
            self._now += seconds
            await self._sleep(0)
            return
        real = self._clock()
        self._due = max(self._due, real - _LATEST_SECONDS) + seconds / self._ratio
        await self._sleep(max(0.0, self._due - real))

    def begin(self) -> None:
        """Work begins after a rest: there is nothing to make up for."""
        self._due = self._clock()

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Return when `event` is set, or engine time is `until`."""
        if until is not None and not self._ratio:
            self._now = max(self._now, until)
            await self._sleep(0)
            return
        seconds = None if until is None else max(0.0, until - self.now()) / self._ratio
        with contextlib.suppress(asyncio.TimeoutError):
            await within(seconds, event.wait())


class Rank:
    """One core, stepping whenever it has work. `deliver` gets each step's result when its time has passed."""

    def __init__(self, core: EngineCore, pace: Pace, deliver: Callable[[StepResult], None]) -> None:
        self.core = core
        self._pace = pace
        self._deliver = deliver
        self._added = asyncio.Event()

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence and wake up. Raises ValueError as `EngineCore.add` does."""
        self.core.add(sequence)
        self._added.set()

    async def run(self) -> None:
        """Step until cancelled."""
        self._pace.begin()
        while True:
            self._added.clear()
            result = self.core.step(self._pace.now())
            if result.duration_seconds or result.outputs:
                await self._pace.spend(result.duration_seconds)
                self._deliver(result)
            else:
                self._deliver(result)
                await self._pace.wait(self._added, result.wait_until)
                self._pace.begin()
