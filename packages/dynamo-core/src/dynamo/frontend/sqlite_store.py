"""Responses in one SQLite file of the state directory, which all frontend processes of the machine share."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from dynamo.frontend.database import Database

__all__ = ["SqliteStore"]

logger = logging.getLogger(__name__)

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
        hint = "choose a writable --state-dir, or --response-store-entries 0 to keep no responses"
        self._database = Database(path, _SCHEMA, what="responses", hint=hint)

    async def put_response(self, response_id: str, owner: str, body: bytes) -> None:
        """See `FrontendStore`; one that is larger than everything that may be kept is not."""
        if len(body) > self._max_bytes:
            logger.warning("response %s is not kept: it has %d bytes", response_id, len(body))
            return
        now = self._clock()

        def work(database: sqlite3.Connection) -> None:
            row = (response_id, owner, now, now, len(body), body)
            database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)
            while self._too_much(database):
                database.execute(_OLDEST)

        await self._database.transaction(work)

    async def get_response(self, response_id: str, owner: str) -> bytes | None:
        """See `FrontendStore`."""
        now = self._clock()

        def work(database: sqlite3.Connection) -> bytes | None:
            query = "UPDATE responses SET used = ? WHERE id = ? AND owner = ?"
            if not database.execute(query, (now, response_id, owner)).rowcount:
                return None
            row = database.execute("SELECT body FROM responses WHERE id = ?", (response_id,)).fetchone()
            return None if row is None else bytes(row[0])

        return await self._database.run(work)

    async def delete_response(self, response_id: str, owner: str) -> bool:
        """See `FrontendStore`."""

        def work(database: sqlite3.Connection) -> bool:
            query = "DELETE FROM responses WHERE id = ? AND owner = ?"
            return database.execute(query, (response_id, owner)).rowcount > 0

        return await self._database.run(work)

    async def close(self) -> None:
        """See `FrontendStore`."""
        await self._database.close()

    def _too_much(self, database: sqlite3.Connection) -> bool:
        entries, size = database.execute("SELECT entries, bytes FROM totals").fetchone()
        return bool(entries > self._max_entries or size > self._max_bytes)
