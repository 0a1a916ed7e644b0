"""Batches and their answers in SQLite, shared by all frontend processes of a machine.

`holder` is the process that works on a batch, until `lease_until`; every change that its work makes asks whether it
still holds the batch, so that a process that was stopped for a while cannot disturb the one that went on.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from dynamo.errors import InvalidRequest, LeaseLost, RateLimited
from dynamo.frontend.batches.record import ENDED, BatchEnded, BatchNotKept, BatchRecord, BatchState, Status
from dynamo.frontend.database import Database
from dynamo.frontend.files.record import FileRecord
from dynamo.frontend.files.space import insert_file
from dynamo.frontend.listing import Page

__all__ = ["BATCHES_SCHEMA", "Answered", "BatchTable"]

BATCHES_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
    input_file_id TEXT NOT NULL, created REAL NOT NULL, completed INTEGER NOT NULL, failed INTEGER NOT NULL,
    state BLOB NOT NULL, holder TEXT, lease_until REAL NOT NULL DEFAULT 0, finished REAL
);
CREATE INDEX IF NOT EXISTS batches_by_end ON batches (finished);
CREATE TABLE IF NOT EXISTS batch_lines (
    batch INTEGER NOT NULL, line INTEGER NOT NULL, failed INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (batch, line)
);
"""
_SELECT = "SELECT number, id, owner, status, input_file_id, created, completed, failed, state FROM batches WHERE "
_INSERT = """INSERT INTO batches (id, owner, status, input_file_id, created, completed, failed, state)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
_FREE = "finished IS NULL AND lease_until < ? AND (holder IS NULL OR holder != ?) AND (owner != '') = ?"
_HELD = "SELECT owner, COUNT(*) FROM batches WHERE finished IS NULL AND lease_until >= ? GROUP BY owner"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(BatchState).decode


class Answered(NamedTuple):
    """One line of an output or error file."""

    line: int
    """Of the input, from 1."""
    failed: bool
    body: bytes


class BatchTable:
    """The table.

    Args:
        database: has `BATCHES_SCHEMA` and the table of files.
        holder: a name of this process that no other has had.
        max_open: batches that have not ended, of all owners.
        max_own: of one owner.
        keyed: whether this process serves clients by their API keys. Batches of clients without keys are for processes
            without keys, and the other way around: each would refuse what the other has promised.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        database: Database,
        holder: str,
        *,
        max_open: int,
        max_own: int,
        keyed: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._holder = holder
        self._max_open = max_open
        self._max_own = max_own
        self._keyed = keyed
        self._clock = clock

    async def add(self, batch_id: str, owner: str, input_file_id: str, state: BatchState) -> BatchRecord:
        """A new batch, not yet looked at.

        Raises:
            RateLimited: too many have not ended yet.
        """
        now = self._clock()

        def work(database: sqlite3.Connection) -> int | None:
            query = "SELECT COUNT(*), COALESCE(SUM(owner = ?), 0) FROM batches WHERE finished IS NULL"
            every, own = database.execute(query, (owner,)).fetchone()
            if every >= self._max_open or own >= self._max_own:
                return None
            row = (batch_id, owner, "validating", input_file_id, now, 0, 0, _encode(state))
            return database.execute(_INSERT, row).lastrowid

        number = await self._database.transaction(work)
        if number is None:
            limits = f"at most {self._max_own} of one API key may, and {self._max_open} of all"
            raise RateLimited(f"too many batches wait or run already; {limits}", retry_after_seconds=60)
        return BatchRecord(number, batch_id, owner, "validating", input_file_id, now, 0, 0, state)

    async def get(self, batch_id: str, owner: str) -> BatchRecord:
        """A batch of this owner.

        Raises:
            BatchNotKept: there is none (any more).
        """
        found = await self._select("id = ? AND owner = ?", (batch_id, owner))
        if not found:
            raise BatchNotKept(f"there is no batch {batch_id!r} (any more)", param="batch_id")
        return found[0]

    async def page(self, owner: str, page: Page) -> tuple[list[BatchRecord], bool]:
        """A page of this owner's batches, newest first, and whether there are more.

        Raises:
            InvalidRequest: `page.after` is no batch of this owner.
        """
        before = 2**62
        if page.after is not None:
            try:
                before = (await self.get(page.after, owner)).number
            except BatchNotKept as error:
                raise InvalidRequest(error.message, param="after") from error
        query = "owner = ? AND number < ? ORDER BY number DESC LIMIT ?"
        found = await self._select(query, (owner, before, page.limit + 1))
        return found[: page.limit], len(found) > page.limit

    async def cancel(self, batch_id: str, owner: str) -> BatchRecord:
        """Ask for its end; one that ends already stays as it is.

        Raises:
            BatchEnded: it has ended.
            BatchNotKept: there is none (any more).
        """

        def work(database: sqlite3.Connection) -> bool:
            query = "SELECT state FROM batches WHERE id = ? AND owner = ? AND status IN ('validating', 'in_progress')"
            row = database.execute(query, (batch_id, owner)).fetchone()
            if row is not None:
                state = msgspec.structs.replace(_decode(row[0]), cancelling_at=self._clock())
                query = "UPDATE batches SET status = 'cancelling', state = ? WHERE id = ?"
                database.execute(query, (_encode(state), batch_id))
            return row is not None

        changed = await self._database.transaction(work)
        record = await self.get(batch_id, owner)
        if not changed and record.status in ENDED:
            raise BatchEnded(f"batch {batch_id!r} cannot be cancelled: it is {record.status}", param="batch_id")
        return record

    async def claim(
        self,
        most: int,
        lease_seconds: float,
        *,
        first_of_owner: int = 0,
        takes: Callable[[BatchRecord], bool] = lambda _: True,
    ) -> list[BatchRecord]:
        """Batches that have not ended, that nobody holds and that this process `takes`; they are held from now on.

        Owners of whom fewest are held, by whatever process, come first, then the oldest batches. Up to `most`, and up
        to `first_of_owner` as long as their owners have none.
        """
        now = self._clock()
        # Its own batches are never claimed again: they are still in work, however late their lease is renewed.
        where, values = _FREE + " ORDER BY number", (now, self._holder, self._keyed)
        wanted = {record.number for record in await self._select(where, values) if takes(record)}
        if not wanted:
            return []  # the usual answer, without the write lock

        def work(database: sqlite3.Connection) -> list[BatchRecord]:
            rows = database.execute(_SELECT + where, values).fetchall()
            free = [record for record in map(_record, rows) if record.number in wanted]
            held = Counter(dict(database.execute(_HELD, (now,)).fetchall()))
            found: list[BatchRecord] = []
            while free:
                best = min(free, key=lambda record: (held[record.owner], record.number))
                if len(found) >= (most if held[best.owner] else max(most, first_of_owner)):
                    break
                free.remove(best)
                found.append(best)
                held[best.owner] += 1
            leases = [(self._holder, now + lease_seconds, record.number) for record in found]
            database.executemany("UPDATE batches SET holder = ?, lease_until = ? WHERE number = ?", leases)
            return found

        return await self._database.transaction(work)

    async def renew(self, lease_seconds: float) -> dict[int, Status]:
        """Go on holding; what is still held, and whether somebody asks for its end."""

        def work(database: sqlite3.Connection) -> dict[int, Status]:
            query = "UPDATE batches SET lease_until = ? WHERE holder = ? AND finished IS NULL"
            database.execute(query, (self._clock() + lease_seconds, self._holder))
            query = "SELECT number, status FROM batches WHERE holder = ? AND finished IS NULL"
            return dict(database.execute(query, (self._holder,)).fetchall())

        return await self._database.transaction(work)

    async def release(self, number: int | None = None) -> None:
        """Let others go on with batch `number`, or with all that is held."""
        query = "UPDATE batches SET holder = NULL, lease_until = 0 WHERE holder = ?1 AND number = COALESCE(?2, number)"
        await self._database.run(lambda database: database.execute(query, (self._holder, number)))

    async def validated(self, record: BatchRecord) -> bool:
        """The input is right: work begins. False when its end was asked for meanwhile."""

        def work(database: sqlite3.Connection) -> bool:
            query = """UPDATE batches SET status = 'in_progress', state = ?
                WHERE number = ? AND holder = ? AND status = 'validating'"""
            held = (record.number, self._holder)
            return database.execute(query, (_encode(record.state), *held)).rowcount > 0

        return await self._database.transaction(work)

    async def answered_lines(self, number: int) -> set[int]:
        """Numbers of the lines that need no answer any more."""

        def work(database: sqlite3.Connection) -> set[int]:
            return {row[0] for row in database.execute("SELECT line FROM batch_lines WHERE batch = ?", (number,))}

        return await self._database.run(work)

    async def add_answers(self, number: int, answers: Sequence[Answered]) -> None:
        """Keep answers, unless their lines have some.

        Raises:
            LeaseLost: another process holds the batch.
        """

        def work(database: sqlite3.Connection) -> bool:
            held = "SELECT 1 FROM batches WHERE number = ? AND holder = ?"
            if database.execute(held, (number, self._holder)).fetchone() is None:
                return False
            counts = [0, 0]
            for answer in answers:
                row = (number, answer.line, answer.failed, answer.body)
                new = database.execute("INSERT OR IGNORE INTO batch_lines VALUES (?, ?, ?, ?)", row).rowcount
                counts[answer.failed] += new
            query = "UPDATE batches SET completed = completed + ?, failed = failed + ? WHERE number = ?"
            database.execute(query, (*counts, number))
            return True

        if not await self._database.transaction(work):
            raise LeaseLost(f"batch {number} is held by another process")

    async def answers(self, number: int, *, failed: bool, after: int, most: int) -> list[Answered]:
        """Up to `most` answers of lines behind `after`, by line."""

        def work(database: sqlite3.Connection) -> list[Answered]:
            query = """SELECT line, failed, body FROM batch_lines
                WHERE batch = ? AND failed = ? AND line > ? ORDER BY line LIMIT ?"""
            rows = database.execute(query, (number, failed, after, most))
            return [Answered(line, bool(fault), bytes(body)) for line, fault, body in rows]

        return await self._database.run(work)

    async def finalizing(self, record: BatchRecord) -> None:
        """Files are being written."""
        query = """UPDATE batches SET status = 'finalizing', state = ?
            WHERE number = ? AND holder = ? AND status != 'cancelling'"""
        row = (_encode(record.state), record.number, self._holder)
        await self._database.run(lambda database: database.execute(query, row))

    async def finish(self, record: BatchRecord, status: Status, files: Iterable[FileRecord] = ()) -> None:
        """Its end: its files appear, and its answers are dropped, all at once.

        Raises:
            LeaseLost: another process holds the batch.
        """

        def work(database: sqlite3.Connection) -> bool:
            query = """UPDATE batches SET status = ?, state = ?, finished = ?, holder = NULL, lease_until = 0
                WHERE number = ? AND holder = ? AND finished IS NULL"""
            row = (status, _encode(record.state), self._clock(), record.number, self._holder)
            if not database.execute(query, row).rowcount:
                return False
            for file in files:
                insert_file(database, file)
            database.execute("DELETE FROM batch_lines WHERE batch = ?", (record.number,))
            return True

        if not await self._database.transaction(work):
            raise LeaseLost(f"batch {record.id} is held by another process")

    async def forget(self, older_than_seconds: float) -> None:
        """Drop batches that ended longer ago."""
        until = self._clock() - older_than_seconds
        await self._database.run(lambda database: database.execute("DELETE FROM batches WHERE finished < ?", (until,)))

    async def _select(self, where: str, values: Sequence[object]) -> list[BatchRecord]:
        return await self._database.run(
            lambda database: [_record(row) for row in database.execute(_SELECT + where, tuple(values)).fetchall()]
        )


def _record(row: tuple[Any, ...]) -> BatchRecord:
    number, batch_id, owner, status, input_file_id, created, completed, failed, state = row
    return BatchRecord(number, batch_id, owner, status, input_file_id, created, completed, failed, _decode(state))
