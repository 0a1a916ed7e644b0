"""Requests whose prompts are made ready beside the event loop: bounded, counted as open, given up with their client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dynamo.errors import Overloaded
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.refusals import Refusals
from dynamo.runtime.http import Exchange
from dynamo.runtime.tasks import Tasks

__all__ = ["Preparations"]

T = TypeVar("T")

#: Bodies of the requests that are prepared at a time. A prompt takes a few times its body until it is encoded.
_LIMIT_BYTES = 64 << 20


class Preparations:
    """The requests of one route handler that are being prepared; the bound is over all of the process."""

    def __init__(self, metrics: FrontendMetrics) -> None:
        self._metrics = metrics
        self._tasks = Tasks()

    def begin(self, exchange: Exchange, endpoint: str, work: Coroutine[Any, Any, T], then: Callable[[T], None]) -> None:
        """Run `work`, then call `then` with what it returns. What either raises is answered.

        Raises:
            Overloaded: too much is prepared already; `work` does not run.
        """
        metrics, size = self._metrics, len(exchange.body)
        if metrics.preparing_bytes and metrics.preparing_bytes + size > _LIMIT_BYTES:
            work.close()
            raise Overloaded("this frontend reads too many long prompts now", retry_after_seconds=1)
        metrics.preparing_bytes += size
        metrics.open_requests += 1
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                metrics.preparing_bytes -= size
                metrics.open_requests -= 1

        async def run() -> None:
            with Refusals(metrics, exchange, endpoint):
                try:
                    ready = await work
                finally:
                    # From here on it is counted as what it has become.
                    leave()
                then(ready)

        def ended(task: asyncio.Task[None]) -> None:
            leave()
            work.close()  # a task that is cancelled before its first step awaits nothing
            if task.cancelled() and exchange.disconnected:
                metrics.refused(endpoint, "cancelled", 499)

        task = self._tasks.spawn(run())
        task.add_done_callback(ended)
        # Work that still waits for its thread is dropped with it.
        exchange.on_disconnect(lambda: _cancel(task))

    async def close(self) -> None:
        """Stop what is being prepared."""
        await self._tasks.cancel()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
