"""Takes batches that nobody works on, and keeps them as long as this process lives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from dynamo.errors import DynamoError
from dynamo.frontend.batches.record import BatchRecord
from dynamo.frontend.batches.run import BatchRun, Workshop
from dynamo.frontend.security import Identity

__all__ = ["BatchClaims", "BatchLimits"]

logger = logging.getLogger(__name__)

#: So that a long batch does not hold up all others of its owner. They share the places for requests, owners in turn.
_BATCHES_AT_ONCE = 4
#: An owner who has no batch in work does not wait for those of others.
_OWNERS_AT_ONCE = 32
_TIDY_SECONDS = 60.0


class BatchLimits(NamedTuple):
    """How batches are taken."""

    lease_seconds: float
    """A batch whose process is dead goes on after this."""
    keep_seconds: float
    """How long batches that have ended can be looked at."""


class BatchClaims:
    """The loop. `identity_of` is that of an owner now; None when the API key is no longer there."""

    def __init__(self, shop: Workshop, limits: BatchLimits, identity_of: Callable[[str], Identity | None]) -> None:
        self._shop = shop
        self._limits = limits
        self._identity_of = identity_of
        self._runs: dict[int, tuple[BatchRun, asyncio.Task[None]]] = {}
        self._woken = asyncio.Event()
        self._next_tidy = 0.0
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background."""
        self._loop = asyncio.get_running_loop().create_task(self._work())

    def wake(self) -> None:
        """Something has changed: look at once."""
        self._woken.set()

    async def close(self) -> None:
        """Leave the batches to other processes, or to the next start."""
        tasks = [task for _, task in self._runs.values()]
        if self._loop is not None:
            tasks.append(self._loop)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._shop.table.release()
        except DynamoError as error:
            logger.warning("batches go on when their lease is over: %s", error)

    async def _work(self) -> None:
        pause = self._limits.lease_seconds / 5
        while True:
            self._woken.clear()
            try:
                await self._look()
            except DynamoError as error:
                logger.warning("batches cannot be looked at: %s", error)
            woken = asyncio.ensure_future(self._woken.wait())
            try:
                # Not `wait_for`, which would lose a cancellation that comes together with the event.
                await asyncio.wait({woken}, timeout=pause)
            finally:
                woken.cancel()

    async def _look(self) -> None:
        self._collect()
        if self._runs:
            held = await self._shop.table.renew(self._limits.lease_seconds)
            for number, (run, task) in self._runs.items():
                if number not in held and not task.done():
                    task.cancel()
                elif held.get(number) == "cancelling":
                    run.cancel.set()
        await self._shop.remembered.learn()
        if len(self._runs) < _OWNERS_AT_ONCE:
            most, first = (max(0, limit - len(self._runs)) for limit in (_BATCHES_AT_ONCE, _OWNERS_AT_ONCE))
            lease = self._limits.lease_seconds
            for record in await self._shop.table.claim(most, lease, first_of_owner=first, takes=self._takes):
                logger.info("batch %s is %s", record.id, record.status)
                run = BatchRun(record, self._identity_of, self._shop)
                task = asyncio.get_running_loop().create_task(run.run())
                task.add_done_callback(lambda _: self.wake())
                self._runs[record.number] = (run, task)
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + _TIDY_SECONDS
            await self._shop.space.tidy()
            await self._shop.table.forget(self._limits.keep_seconds)
        await self._shop.remembered.note()

    def _takes(self, record: BatchRecord) -> bool:
        """Other processes may share the store, and serve other models and API keys: what is theirs is left to them.

        What only has to be ended anybody can end.
        """
        if record.status in ("cancelling", "finalizing") or record.state.expires_at <= time.time():
            return True
        return self._identity_of(record.owner) is not None and not self._shop.leaves(record)

    def _collect(self) -> None:
        for number, (_, task) in list(self._runs.items()):
            if not task.done():
                continue
            del self._runs[number]
            if not task.cancelled() and task.exception() is not None:
                # Held until its lease is over, then tried again.
                logger.error("batch %d failed", number, exc_info=task.exception())
