"""Where files lie: bodies in a directory, records in the table ``files``.

A body is written first and recorded afterwards, and a record is removed before its body: what a killed process leaves
is a body without a record, which `FileSpace.tidy` removes when it is old. Room for what comes in is reserved in the
table ``uploads``, so that all processes together stay within the bounds; what a killed process reserved is free soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from dynamo.errors import ConfigError, DynamoError, InvalidRequest
from dynamo.frontend.database import Database, StorageFull
from dynamo.frontend.files.record import FileNotKept, FileRecord
from dynamo.frontend.listing import Page

__all__ = ["FILES_SCHEMA", "FileSpace", "Reservation", "insert_file"]

logger = logging.getLogger(__name__)

FILES_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, purpose TEXT NOT NULL,
    filename TEXT NOT NULL, bytes INTEGER NOT NULL, created REAL NOT NULL, expires REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS uploads (id TEXT PRIMARY KEY, bytes INTEGER NOT NULL, until REAL NOT NULL);
"""
_SELECT = "SELECT id, owner, purpose, filename, bytes, created, expires FROM files WHERE "
#: A body without a record may still be in writing.
_ORPHAN_SECONDS = 24 * 3600.0
#: Of a reservation, from its last renewal on. The HTTP server ends an upload of which nothing comes for 30 s.
_RESERVED_SECONDS = 120.0


class FileInUse(InvalidRequest):
    """A batch that has not ended reads the file."""

    code = "file_in_use"
    http_status = 409


class Reservation:
    """Room that an upload takes until it is recorded or given up. Made by `FileSpace.uploading`."""

    def __init__(self, reserve: Callable[[str, int], Awaitable[None]], clock: Callable[[], float]) -> None:
        self.id = secrets.token_hex(16)
        self._reserve = reserve
        self._clock = clock
        self._bytes = -1
        self._renew_at = 0.0

    async def take(self, size: int) -> None:
        """Reserve `size` bytes in all; what is reserved already stays so. To be called with every piece that comes.

        Raises:
            StorageFull: there is no room for them.
        """
        if size > self._bytes or self._clock() >= self._renew_at:
            size = max(size, self._bytes)
            renew_at = self._clock() + _RESERVED_SECONDS / 2
            await self._reserve(self.id, size)
            self._bytes, self._renew_at = size, renew_at


class FileSpace:
    """Bodies and records of files.

    Args:
        database: has `FILES_SCHEMA`, and the table of batches.
        directory: of the bodies; made if missing, readable by this user only.
        max_files: of all owners.
        max_bytes: of all files together.
        clock: Unix time in seconds.

    Raises:
        ConfigError: the directory cannot be made.
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        max_files: int,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._directory = directory
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._clock = clock
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"cannot make {directory} for files: {error.strerror}",
                param="state_dir",
                hint="choose a writable --state-dir, or --file-store-mib 0 to serve no files and batches",
            ) from error

    def path(self, file_id: str) -> Path:
        """Where the body of a file of ours is; `file_id` is never what a client sent."""
        return self._directory / file_id

    @contextlib.asynccontextmanager
    async def uploading(self, size: int) -> AsyncIterator[Reservation]:
        """Reserve room for one more file of `size` bytes while it comes, before anything of it is written.

        Raises:
            StorageFull: a file of `size` bytes would be one, or too large, too much.
        """
        reservation = Reservation(self._reserve, self._clock)
        await reservation.take(size)
        try:
            yield reservation
        finally:
            await self._give_back(reservation.id)

    async def add(self, record: FileRecord, reservation: Reservation | None = None) -> None:
        """Record a file whose body is complete, for which `reservation` was made.

        Raises:
            StorageFull: there is no room for it.
        """

        def work(database: sqlite3.Connection) -> None:
            upload = "" if reservation is None else reservation.id
            self._check_room(database, record.bytes, upload)
            insert_file(database, record)
            database.execute("DELETE FROM uploads WHERE id = ?", (upload,))

        await self._database.transaction(work)

    async def get(self, file_id: str, owner: str) -> FileRecord:
        """A file of this owner.

        Raises:
            FileNotKept: there is none (any more).
        """

        def work(database: sqlite3.Connection) -> FileRecord | None:
            query = _SELECT + "id = ? AND owner = ? AND expires > ?"
            row = database.execute(query, (file_id, owner, self._clock())).fetchone()
            return None if row is None else FileRecord(*row)

        found = await self._database.run(work)
        if found is None:
            raise FileNotKept(f"there is no file {file_id!r} (any more)", param="file_id")
        return found

    async def page(self, owner: str, page: Page, purpose: str | None) -> tuple[list[FileRecord], bool]:
        """A page of this owner's files, and whether there are more.

        Raises:
            InvalidRequest: `page.after` is no file of this owner.
        """

        def work(database: sqlite3.Connection) -> list[FileRecord] | None:
            where, values = "owner = ? AND expires > ?", [owner, self._clock()]
            if purpose is not None:
                where, values = f"{where} AND purpose = ?", [*values, purpose]
            if page.after is not None:
                row = database.execute(
                    "SELECT number FROM files WHERE id = ? AND owner = ?", (page.after, owner)
                ).fetchone()
                if row is None:
                    return None
                where, values = f"{where} AND number {'<' if page.newest_first else '>'} ?", [*values, row[0]]
            order = "DESC" if page.newest_first else "ASC"
            query = _SELECT + f"{where} ORDER BY number {order} LIMIT ?"
            return [FileRecord(*row) for row in database.execute(query, [*values, page.limit + 1])]

        found = await self._database.run(work)
        if found is None:
            raise InvalidRequest(f"there is no file {page.after!r}", param="after")
        return found[: page.limit], len(found) > page.limit

    async def delete(self, file_id: str, owner: str) -> None:
        """Remove a file.

        Raises:
            FileNotKept: there is none.
            FileInUse: a batch still reads it.
        """

        def work(database: sqlite3.Connection) -> bool:
            query = "SELECT 1 FROM batches WHERE input_file_id = ? AND finished IS NULL"
            if database.execute(query, (file_id,)).fetchone() is not None:
                return False
            database.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner))
            return True

        await self.get(file_id, owner)
        if not await self._database.transaction(work):
            raise FileInUse(f"a batch reads {file_id!r}", param="file_id", hint="cancel it or let it end first")
        await self.remove_bodies([file_id])

    async def tidy(self) -> None:
        """Remove files whose time is over, and bodies that a killed process left."""
        now = self._clock()

        def expire(database: sqlite3.Connection) -> list[str]:
            # A batch that has not ended keeps what it reads.
            query = """SELECT id FROM files WHERE expires <= ? AND NOT EXISTS (
                SELECT 1 FROM batches WHERE input_file_id = files.id AND finished IS NULL)"""
            ids = [row[0] for row in database.execute(query, (now,))]
            database.executemany("DELETE FROM files WHERE id = ?", [(name,) for name in ids])
            return ids

        def known(database: sqlite3.Connection) -> set[str]:
            return {row[0] for row in database.execute("SELECT id FROM files")}

        await self.remove_bodies(await self._database.transaction(expire))
        old = await asyncio.to_thread(self._bodies_before, now - _ORPHAN_SECONDS)
        # Read after the directory: what is recorded in between is not taken for an orphan.
        recorded = await self._database.run(known) if old else set()
        await self.remove_bodies([name for name in old if name not in recorded])

    async def remove_bodies(self, file_ids: Sequence[str]) -> None:
        """Remove bodies that are not recorded (any more)."""

        def work() -> None:
            for name in file_ids:
                try:
                    self.path(name).unlink(missing_ok=True)
                except OSError as error:
                    # It is found again as an orphan.
                    logger.warning("the body of file %s cannot be removed: %s", name, error.strerror)

        if file_ids:
            await asyncio.to_thread(work)

    def _bodies_before(self, unix_seconds: float) -> list[str]:
        old = []
        try:
            for path in self._directory.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another process tidies too
                    if path.stat().st_mtime < unix_seconds:
                        old.append(path.name)
        except OSError as error:
            logger.warning("%s cannot be tidied: %s", self._directory, error.strerror)
        return old

    async def _reserve(self, upload: str, size: int) -> None:
        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM uploads WHERE until < ?", (self._clock(),))
            self._check_room(database, size, upload)
            row = (upload, size, self._clock() + _RESERVED_SECONDS)
            database.execute("INSERT OR REPLACE INTO uploads (id, bytes, until) VALUES (?, ?, ?)", row)

        await self._database.transaction(work)

    async def _give_back(self, upload: str) -> None:
        try:
            await self._database.run(lambda database: database.execute("DELETE FROM uploads WHERE id = ?", (upload,)))
        except DynamoError as error:
            logger.warning("the room of an upload is free in %g s: %s", _RESERVED_SECONDS, error)

    def _check_room(self, database: sqlite3.Connection, size: int, upload: str) -> None:
        """Whether `upload` may have `size` bytes beside all files and the other uploads."""
        query = """SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM (
            SELECT bytes FROM files UNION ALL SELECT bytes FROM uploads WHERE id != ? AND until >= ?)"""
        count, used = database.execute(query, (upload, self._clock())).fetchone()
        if count >= self._max_files or used + size > self._max_bytes:
            raise StorageFull(
                f"{count} files with {used} bytes are kept or come in; at most {self._max_files} files with "
                f"{self._max_bytes} bytes are",
                hint="delete files, or raise --max-files and --file-store-mib",
            )


def insert_file(database: sqlite3.Connection, record: FileRecord) -> None:
    """Record a file within a transaction of the caller, without a look at bounds."""
    database.execute(
        """INSERT INTO files (id, owner, purpose, filename, bytes, created, expires)
            VALUES (?, ?, ?, ?, ?, ?, ?)""",
        (
            record.id,
            record.owner,
            record.purpose,
            record.filename,
            record.bytes,
            record.created_unix_seconds,
            record.expires_unix_seconds,
        ),
    )
