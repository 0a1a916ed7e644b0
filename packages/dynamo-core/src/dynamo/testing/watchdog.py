"""For plugins that block the event loop: no deadline runs then, so a thread has to end the process."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import sys
from collections.abc import AsyncIterator

__all__ = ["watchdog"]

_BEATS = 10


@contextlib.asynccontextmanager
async def watchdog(seconds: float) -> AsyncIterator[None]:
    """End the process with status 1 and the stacks of all threads when the event loop stands still for `seconds`."""

    async def beat() -> None:
        while True:
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
            await asyncio.sleep(seconds / _BEATS)

    heart = asyncio.ensure_future(beat())
    try:
        yield
    finally:
        heart.cancel()
        faulthandler.cancel_dump_traceback_later()
