"""The frontend store in one SQLite file of the state directory.

WAL mode lets every frontend process of the machine read while one writes. Calls run one after another in a thread of
their own, so that the event loop never waits for the disk and a process reads what it wrote.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dynamo.errors import ConfigError, EngineError, Overloaded, ResponseTimeout

__all__ = ["SqliteStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: For the write lock; the other processes hold it for well under a millisecond.
_BUSY_SECONDS = 5.0
#: For one call, its wait for others included.
_DEADLINE_SECONDS = 15.0
#: Calls of this process that may wait; at 0.2 ms each they take a fifth of a second.
_WAITING_LIMIT = 1000
# `totals` spares every insert a scan; triggers keep it right whoever changes the table.
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL, used REAL NOT NULL, bytes INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used);
CREATE TABLE IF NOT EXISTS totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM totals);
CREATE TRIGGER IF NOT EXISTS response_added AFTER INSERT ON responses BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + NEW.bytes;
END;
CREATE TRIGGER IF NOT EXISTS response_removed AFTER DELETE ON responses BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - OLD.bytes;
END;
COMMIT;
"""
_OLDEST = "DELETE FROM responses WHERE id = (SELECT id FROM responses ORDER BY used LIMIT 1)"


class SqliteStore:
    """Implements `dynamo.frontend.store.FrontendStore`.

    Args:
        path: the file; its directory is made if missing, readable by this user only.
        max_entries: responses kept, over all owners.
        max_bytes: of their bodies together; the file is a little larger.
        clock: Unix time in seconds.

    Raises:
        ConfigError: the file cannot be opened or is not a database.
    """

    def __init__(self, path: Path, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dynamo-store")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot open {path} for responses: {error}",
                param="state_dir",
                hint="choose a writable --state-dir, or --response-store-entries 0 to keep no responses",
            ) from error

    async def put_response(self, response_id: str, owner: str, body: bytes) -> None:
        """See `FrontendStore`; one that is larger than everything that may be kept is not."""
        if len(body) > self._max_bytes:
            logger.warning("response %s is not kept: it has %d bytes", response_id, len(body))
            return
        now = self._clock()

        def work() -> None:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                row = (response_id, owner, now, now, len(body), body)
                self._database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)
                while self._too_much():
                    self._database.execute(_OLDEST)

        await self._run(work)

    async def get_response(self, response_id: str, owner: str) -> bytes | None:
        """See `FrontendStore`."""
        now = self._clock()

        def work() -> bytes | None:
            query = "UPDATE responses SET used = ? WHERE id = ? AND owner = ?"
            if not self._database.execute(query, (now, response_id, owner)).rowcount:
                return None
            row = self._database.execute("SELECT body FROM responses WHERE id = ?", (response_id,)).fetchone()
            return None if row is None else bytes(row[0])

        return await self._run(work)

    async def delete_response(self, response_id: str, owner: str) -> bool:
        """See `FrontendStore`."""

        def work() -> bool:
            query = "DELETE FROM responses WHERE id = ? AND owner = ?"
            return self._database.execute(query, (response_id, owner)).rowcount > 0

        return await self._run(work)

    async def close(self) -> None:
        """See `FrontendStore`."""
        await asyncio.to_thread(self._thread.shutdown)
        self._database.close()

    def _too_much(self) -> bool:
        entries, size = self._database.execute("SELECT entries, bytes FROM totals").fetchone()
        return bool(entries > self._max_entries or size > self._max_bytes)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= _WAITING_LIMIT:
            raise Overloaded("too many responses wait to be kept or read", retry_after_seconds=1)
        self._waiting += 1
        job = asyncio.get_running_loop().run_in_executor(self._thread, work)
        job.add_done_callback(self._ran)
        try:
            # A caller that gives up must not cancel what is half done.
            return await asyncio.wait_for(asyncio.shield(job), _DEADLINE_SECONDS)
        except sqlite3.Error as error:
            raise EngineError(f"the store of responses failed: {error}") from error
        except asyncio.TimeoutError as error:
            raise ResponseTimeout("the store of responses did not answer in time") from error

    def _ran(self, job: asyncio.Future[T]) -> None:
        self._waiting -= 1
        if not job.cancelled():
            job.exception()  # read, or asyncio would report it where the caller has given up


def _open(path: Path) -> sqlite3.Connection:
    # The worker thread uses it; only opening happens here, so that a bad path stops the start.
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    path.chmod(0o600)
    database.execute("PRAGMA journal_mode = WAL")
    # A power cut may lose the last responses, never the file.
    database.execute("PRAGMA synchronous = NORMAL")
    database.executescript(_SCHEMA)
    return database
