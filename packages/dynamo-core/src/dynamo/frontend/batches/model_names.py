"""Names of models that frontends on one store have served, so that what is served elsewhere differs from a misspelling.

A frontend that serves no model of a batch leaves it to others if the store remembers one of its models, from whichever
run. Else nobody is likely to answer it ever, and it had better fail soon. Used by `claims`, `run` and `endpoint`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from dynamo.frontend.database import Database

__all__ = ["MODEL_NAMES_SCHEMA", "ModelNames"]

MODEL_NAMES_SCHEMA = """
CREATE TABLE IF NOT EXISTS served_models (number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
"""
_KEPT = 10_000
_INSERT = "INSERT OR REPLACE INTO served_models (name) VALUES (?)"
_FORGET = """DELETE FROM served_models
    WHERE number <= (SELECT number FROM served_models ORDER BY number DESC LIMIT 1 OFFSET ?)"""
#: Grows with every name that is noted, since such a row gets the largest number.
_VERSION = "SELECT COALESCE(MAX(number), 0) FROM served_models"


class ModelNames:
    """What the store remembers, as of the last `learn`.

    Args:
        database: has `MODEL_NAMES_SCHEMA`.
        served: the names that this process serves now.
        kept: names that are remembered; beyond it those go that were noted first.
    """

    def __init__(self, database: Database, served: Callable[[], Sequence[str]], kept: int = _KEPT) -> None:
        self._database = database
        self._served = served
        self._kept = kept
        self._noted: frozenset[str] = frozenset()
        self._version = 0
        self._remembered: frozenset[str] = frozenset()

    def __contains__(self, name: str) -> bool:
        return name in self._remembered

    async def note(self) -> None:
        """Let all remember what this process serves; nothing is written when nothing is new.

        Raises:
            EngineError: the store failed, or was too busy.
        """
        names = self._served()
        if self._noted.issuperset(names):
            return

        def work(database: sqlite3.Connection) -> None:
            # All of them, so that what is still served is not forgotten for adapters that come and go.
            database.executemany(_INSERT, [(name,) for name in names[-self._kept :]])
            database.execute(_FORGET, (self._kept,))

        await self._database.transaction(work)
        self._noted = frozenset(names)

    async def learn(self) -> None:
        """Read what others have noted since.

        Raises:
            EngineError: the store failed, or was too busy.
        """
        known = self._version

        def work(database: sqlite3.Connection) -> tuple[int, frozenset[str]] | None:
            (version,) = database.execute(_VERSION).fetchone()
            if version == known:
                return None
            return version, frozenset(row[0] for row in database.execute("SELECT name FROM served_models"))

        found = await self._database.run(work)
        if found is not None:
            self._version, self._remembered = found
