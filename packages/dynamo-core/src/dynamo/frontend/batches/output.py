"""Writes the output and the error file of a batch."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

from dynamo.frontend.batches.record import BatchRecord
from dynamo.frontend.batches.table import BatchTable
from dynamo.frontend.files import FileRecord, FileSpace
from dynamo.frontend.files.record import new_file_id
from dynamo.frontend.files.upload import disk_error

__all__ = ["write_output"]

_ANSWERS_AT_ONCE = 100


async def write_output(
    record: BatchRecord, table: BatchTable, space: FileSpace, *, failed: bool, expiry_seconds: float
) -> FileRecord | None:
    """The file of all answers that are successes, or that are not; None when there are none. It is not recorded yet.

    Raises:
        StorageFull: the disk is full.
        EngineError: the disk failed.
    """
    answers = await table.answers(record.number, failed=failed, after=0, most=_ANSWERS_AT_ONCE)
    if not answers:
        return None
    file_id = new_file_id()
    path = space.path(file_id)
    try:
        while answers:
            await asyncio.to_thread(_append, path, [answer.body for answer in answers])
            answers = await table.answers(record.number, failed=failed, after=answers[-1].line, most=_ANSWERS_AT_ONCE)
        size = await asyncio.to_thread(_sync, path)
    except OSError as error:
        await space.remove_bodies([file_id])
        raise disk_error(error, "the output of a batch") from error
    now = time.time()
    filename = f"{record.id}_{'error' if failed else 'output'}.jsonl"
    return FileRecord(file_id, record.owner, "batch_output", filename, size, now, now + expiry_seconds)


def _append(path: Path, lines: Sequence[bytes]) -> None:
    with path.open("ab") as file:
        for line in lines:
            file.write(line + b"\n")


def _sync(path: Path) -> int:
    """Size in bytes, once it is all on disk: the answers are dropped when the file is recorded."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
