"""One request in this process: its only way to be cancelled, its deadline and its trace."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

__all__ = ["Context"]

logger = logging.getLogger(__name__)


class Context:
    """Implements `dynamo.protocols.context.RequestContext`. Belongs to one event loop."""

    __slots__ = ("_callbacks", "_cancelled", "_waiter", "deadline_unix_seconds", "request_id", "trace")

    def __init__(
        self, request_id: str, *, deadline_unix_seconds: float | None = None, trace: Mapping[str, str] | None = None
    ) -> None:
        self.request_id = request_id
        self.deadline_unix_seconds = deadline_unix_seconds
        self.trace: Mapping[str, str] = trace or {}
        self._cancelled = False
        self._callbacks: list[Callable[[], None]] = []
        self._waiter: asyncio.Event | None = None

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel; runs the callbacks once, in the order they were added."""
        if self._cancelled:
            return
        self._cancelled = True
        if self._waiter is not None:
            self._waiter.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logger.exception("cancel callback of request %s failed", self.request_id)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` at cancellation, or now if that has happened."""
        if self._cancelled:
            callback()
        else:
            self._callbacks.append(callback)

    async def wait_cancelled(self) -> None:
        """Return once cancelled."""
        if self._cancelled:
            return
        if self._waiter is None:
            self._waiter = asyncio.Event()
        await self._waiter.wait()
