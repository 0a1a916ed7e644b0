"""Follows files that operators change under a running process: key files, certificates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dynamo.errors import ConfigError

__all__ = ["FileWatch"]

logger = logging.getLogger(__name__)


class FileWatch:
    """Calls `reload` when one of `paths` has changed; while that fails, what was loaded before stays in force.

    It polls: Kubernetes changes mounted secrets by moving links, and network file systems announce nothing.

    Args:
        paths: files; they may be missing.
        reload: raises ConfigError when they cannot be used.
        what: they are, for the log.
        threaded: whether `reload` runs in a thread, for what takes long; else on the event loop.
    """

    def __init__(self, paths: Sequence[Path], reload: Callable[[], None], what: str, *, threaded: bool) -> None:
        self._paths = paths
        self._reload = reload
        self._what = what
        self._threaded = threaded
        self._seen = self._signature()

    async def follow(self, interval_seconds: float) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(interval_seconds)
            now = await asyncio.to_thread(self._signature)
            if now == self._seen:
                continue
            self._seen = now
            if self._threaded:
                await asyncio.to_thread(self._try_reload)
            else:
                self._try_reload()

    def _try_reload(self) -> None:
        try:
            self._reload()
        except ConfigError as error:
            logger.warning("the new %s cannot be used, the old one stays in force: %s", self._what, error.message)
        else:
            logger.info("reloaded the %s", self._what)

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
