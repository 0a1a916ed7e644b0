"""What API keys have used of the current minute, shared by the frontend processes of a machine.

Counters are leased in slices: a process takes a piece of the allowance from the store and spends it in memory, so that
the store is asked a bounded number of times per minute however many requests come. See `rate_limits.Meter`.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Protocol

from dynamo.errors import ConfigError

__all__ = ["MemoryWindows", "SqliteWindows", "WindowStore"]

logger = logging.getLogger(__name__)

#: A process that holds the write lock longer than this is stopped or dead: count alone rather than wait for it.
_BUSY_SECONDS = 0.05
_SCHEMA = """CREATE TABLE IF NOT EXISTS windows (
    counter TEXT NOT NULL, number INTEGER NOT NULL, used INTEGER NOT NULL, PRIMARY KEY (counter, number)
) WITHOUT ROWID"""
_ADD = """INSERT INTO windows VALUES (?, ?, ?)
    ON CONFLICT (counter, number) DO UPDATE SET used = used + excluded.used"""


class WindowStore(Protocol):
    """Used amounts by counter (a key's requests, a key's tokens) and number of the window."""

    def lease(self, counter: str, number: int, wanted: int, limit: int) -> tuple[int, int]:
        """Take up to `wanted` of what `limit` leaves: what was granted, and what is left after that."""
        ...

    def charge(self, counter: str, number: int, amount: int) -> None:
        """Add what was used already, also beyond the limit."""
        ...

    def close(self) -> None:
        """Free files."""
        ...


class MemoryWindows:
    """Counters of one process."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[int, int]] = {}

    def lease(self, counter: str, number: int, wanted: int, limit: int) -> tuple[int, int]:
        """See `WindowStore`."""
        used = self._used_in(counter, number)
        granted = max(0, min(wanted, limit - used))
        self._used[counter] = (number, used + granted)
        return granted, max(0, limit - used - granted)

    def charge(self, counter: str, number: int, amount: int) -> None:
        """See `WindowStore`."""
        self._used[counter] = (number, self._used_in(counter, number) + amount)

    def close(self) -> None:
        """Nothing to free."""

    def _used_in(self, counter: str, number: int) -> int:
        known, used = self._used.get(counter, (number, 0))
        return used if known == number else 0


class SqliteWindows:
    """Counters of all frontend processes of a machine, in one SQLite file.

    Its calls block for about 30 us; while the file cannot be used, the process counts alone and says so once.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when the file cannot be opened or is not a database."""
        try:
            self._database = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot open {path} for rate limits: {error}",
                param="rate_limit_store",
                hint="choose a writable --state-dir, or --rate-limit-store memory to count per process",
            ) from error
        self._alone = MemoryWindows()
        self._failing = False

    def lease(self, counter: str, number: int, wanted: int, limit: int) -> tuple[int, int]:
        """See `WindowStore`."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                used = self._used_in(counter, number)
                granted = max(0, min(wanted, limit - used))
                self._add(counter, number, granted)
            finally:
                self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._count_alone(error)
            return self._alone.lease(counter, number, wanted, limit)
        self._failing = False
        return granted, max(0, limit - used - granted)

    def charge(self, counter: str, number: int, amount: int) -> None:
        """See `WindowStore`."""
        try:
            self._add(counter, number, amount)
        except sqlite3.Error as error:
            self._count_alone(error)
            self._alone.charge(counter, number, amount)

    def close(self) -> None:
        """See `WindowStore`."""
        self._database.close()

    def _used_in(self, counter: str, number: int) -> int:
        query = "SELECT used FROM windows WHERE counter = ? AND number = ?"
        row = self._database.execute(query, (counter, number)).fetchone()
        if row is None:
            # The first use of a window is when older ones are of no use any more.
            self._database.execute("DELETE FROM windows WHERE counter = ? AND number < ?", (counter, number))
            return 0
        return int(row[0])

    def _add(self, counter: str, number: int, amount: int) -> None:
        self._database.execute(_ADD, (counter, number, amount))

    def _count_alone(self, error: sqlite3.Error) -> None:
        if not self._failing:
            logger.warning("rate limits are counted by this process alone: %s", error)
        self._failing = True


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # Counters of one minute need not survive a power cut, and the event loop must not wait for the disk.
        database.execute("PRAGMA synchronous = OFF")
        database.execute(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database
