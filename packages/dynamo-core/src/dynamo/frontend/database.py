"""One SQLite file of the state directory, shared by all frontend processes of a machine.

WAL mode lets every process read while one writes. Calls run one after another in a thread of their own, so that the
event loop never waits for the disk and a process reads what it wrote. Used by everything that outlives a request.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dynamo.errors import ConfigError, EngineError, Overloaded, ResponseTimeout

__all__ = ["Database", "StorageFull"]

T = TypeVar("T")

#: For the write lock; the other processes hold it for well under a millisecond.
_BUSY_SECONDS = 5.0
#: For one call, its wait for others included.
_DEADLINE_SECONDS = 15.0
#: Calls of this process that may wait; at 0.2 ms each they take a fifth of a second.
_WAITING_LIMIT = 1000


class StorageFull(EngineError):
    """The disk, or what may be kept on it, is full."""

    code = "storage_full"
    http_status = 507


class Database:
    """Runs work on one file.

    Args:
        path: the file; its directory is made if missing, readable by this user only.
        schema: SQL that makes what is missing; it runs at every start.
        what: it holds, for messages.
        hint: what to do when it cannot be opened.

    Raises:
        ConfigError: the file cannot be opened or is not a database.
    """

    def __init__(self, path: Path, schema: str, *, what: str, hint: str) -> None:
        self._what = what
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dynamo-store")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = _open(path, schema)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot open {path} for {what}: {error}", param="state_dir", hint=hint) from error

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns; each of its statements is a transaction of its own.

        Raises:
            Overloaded: too many calls wait already.
            ResponseTimeout: it did not end in time; it may still be done.
            StorageFull: the disk is full.
            EngineError: the database failed.
        """
        if self._waiting >= _WAITING_LIMIT:
            raise Overloaded(f"too many calls wait for the store of {self._what}", retry_after_seconds=1)
        self._waiting += 1
        job = asyncio.get_running_loop().run_in_executor(self._thread, work, self._connection)
        job.add_done_callback(self._ran)
        # Unlike `asyncio.wait_for` this leaves what is half done alone when the caller gives up, and before Python 3.12
        # it loses no cancellation that comes together with the result.
        done, _ = await asyncio.wait({job}, timeout=_DEADLINE_SECONDS)
        if not done:
            raise ResponseTimeout(f"the store of {self._what} did not answer in time")
        try:
            return job.result()
        except sqlite3.Error as error:
            if "full" in str(error):  # SQLITE_FULL; its code can be asked for from Python 3.11 on only
                raise StorageFull(f"there is no room for {self._what}: {error}") from error
            raise EngineError(f"the store of {self._what} failed: {error}") from error

    async def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As `run`, with all of it in one transaction; when `work` raises, nothing has happened."""

        def whole(connection: sqlite3.Connection) -> T:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                return work(connection)

        return await self.run(whole)

    async def close(self) -> None:
        """Let what was begun end, and free the file."""
        await asyncio.to_thread(self._thread.shutdown)
        self._connection.close()

    def _ran(self, job: asyncio.Future[T]) -> None:
        self._waiting -= 1
        if not job.cancelled():
            job.exception()  # read, or asyncio would report it where the caller has given up


def _open(path: Path, schema: str) -> sqlite3.Connection:
    # The worker thread uses it; only opening happens here, so that a bad path stops the start.
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)
        # Before the first table: pages that are freed go back to the disk.
        connection.execute("PRAGMA auto_vacuum = FULL")
        connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may lose the last changes, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(schema)
    except (OSError, sqlite3.Error):
        connection.close()
        raise
    return connection
