"""Tasks that nobody awaits, and waiting with a deadline in tasks that get cancelled.

The event loop refers to tasks only weakly, so whoever starts one that nobody awaits has to keep it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Tasks", "within"]

T = TypeVar("T")


async def within(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled when that takes longer than `seconds`. None: it may take for ever.

    As `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes together with the result: a loop
    around it would then never end.

    Raises:
        asyncio.TimeoutError: it took longer.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # read, or asyncio would report it where the caller was cancelled
    return task.result()


class Tasks:
    """The running tasks of one owner, which calls :meth:`cancel` or :meth:`wait` when it closes."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def cancel(self) -> None:
        """Stop what is running, and wait until it has ended."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def wait(self) -> None:
        """Let what was begun end."""
        if self._running:
            await asyncio.wait(self._running)
