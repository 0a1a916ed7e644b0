"""Requests whose handlers wait for something (the store, the disk): each runs in a task that ends with an answer."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.refusals import Refusals
from dynamo.runtime.http import Exchange
from dynamo.runtime.tasks import Tasks

__all__ = ["Calls"]


class Calls:
    """The running calls of one endpoint; `endpoint` is its name in metrics."""

    def __init__(self, metrics: FrontendMetrics, endpoint: str) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self._tasks = Tasks()

    def serve(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which answers `exchange`; what it raises is answered too."""

        async def answered() -> None:
            with Refusals(self._metrics, exchange, self._endpoint):
                await work

        self.spawn(answered())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until `close` at the latest has waited for it."""
        self._tasks.spawn(work)

    async def close(self) -> None:
        """Let what was begun end."""
        await self._tasks.wait()
