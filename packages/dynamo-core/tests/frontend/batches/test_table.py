"""Who may work on a batch: leases, a process that comes back late, answers that come twice."""

from __future__ import annotations

import contextlib

import pytest

from dynamo.errors import LeaseLost, RateLimited
from dynamo.frontend.batches.record import BatchEnded, BatchNotKept, BatchState
from dynamo.frontend.batches.table import BATCHES_SCHEMA, Answered, BatchTable
from dynamo.frontend.database import Database
from dynamo.frontend.files.record import FileRecord
from dynamo.frontend.files.space import FILES_SCHEMA

LEASE = 10.0
FILE = FileRecord("file-out", "ann", "batch_output", "f", 1, 0.0, 1e12)


class Clock:
    """Unix time that a test moves."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
async def two(tmp_path):
    """Two processes, each with a database connection of its own, and their clock."""
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:
        tables = []
        for name in ("one", "two"):
            database = Database(tmp_path / "db", FILES_SCHEMA + BATCHES_SCHEMA, what="batches", hint="")
            stack.push_async_callback(database.close)
            tables.append(BatchTable(database, name, max_open=5, max_own=3, keyed=True, clock=clock))
        yield *tables, clock


async def add(table, name="batch_1", owner="ann"):
    return await table.add(name, owner, "file-in", BatchState("/v1/completions", "24h", 1e12, total=2))


async def test_a_batch_has_one_holder_until_its_lease_is_over(two):
    one, other, clock = two
    await add(one)
    (claimed,) = await one.claim(4, LEASE)
    assert claimed.id == "batch_1"
    assert await other.claim(4, LEASE) == []
    clock.now += LEASE - 1
    assert await one.renew(LEASE) == {claimed.number: "validating"}
    clock.now += LEASE - 1
    assert await other.claim(4, LEASE) == []
    clock.now += 2
    assert await one.claim(4, LEASE) == []  # it is still in work there
    assert [record.id for record in await other.claim(4, LEASE)] == ["batch_1"]
    assert await one.renew(LEASE) == {}
    await other.release()
    assert [record.id for record in await one.claim(4, LEASE)] == ["batch_1"]


async def test_who_comes_back_late_changes_nothing(two):
    one, other, clock = two
    await add(one)
    (record,) = await one.claim(1, LEASE)
    assert await one.validated(record)
    await one.add_answers(record.number, [Answered(1, False, b"first")])
    clock.now += LEASE + 1
    (taken,) = await other.claim(1, LEASE)
    assert (taken.status, taken.completed) == ("in_progress", 1)
    assert await other.answered_lines(taken.number) == {1}
    with pytest.raises(LeaseLost):
        await one.add_answers(record.number, [Answered(2, False, b"late")])
    with pytest.raises(LeaseLost):
        await one.finish(record, "completed", [FILE])
    assert not await one.validated(record)
    await one.finalizing(record)
    assert (await one.get("batch_1", "ann")).status == "in_progress"
    # A line that two processes have asked counts once, with its first answer.
    await other.add_answers(taken.number, [Answered(1, False, b"again"), Answered(2, True, b"second")])
    assert await other.answers(taken.number, failed=False, after=0, most=10) == [Answered(1, False, b"first")]
    found = await other.get("batch_1", "ann")
    assert (found.completed, found.failed) == (1, 1)
    await other.finish(taken, "completed", [FILE])
    with pytest.raises(LeaseLost):
        await other.finish(taken, "completed")
    assert await other.answered_lines(taken.number) == set()


async def test_a_batch_is_cancelled_from_anywhere(two):
    one, other, _ = two
    await add(one)
    (record,) = await one.claim(1, LEASE)
    assert (await other.cancel("batch_1", "ann")).status == "cancelling"
    assert await one.renew(LEASE) == {record.number: "cancelling"}
    assert not await one.validated(record)
    await one.finalizing(record)
    await one.finish(record, "cancelled")
    with pytest.raises(BatchEnded):
        await other.cancel("batch_1", "ann")
    for call in (other.cancel("batch_1", "bob"), other.get("batch_1", "bob"), other.get("batch_2", "ann")):
        with pytest.raises(BatchNotKept):
            await call


async def test_open_batches_are_bounded_and_old_ones_forgotten(two):
    one, _, clock = two
    for number in range(3):
        await add(one, f"batch_{number}")
    with pytest.raises(RateLimited):
        await add(one, "batch_3")
    for number in range(2):
        await add(one, f"bobs_{number}", "bob")
    with pytest.raises(RateLimited):
        await add(one, "bobs_2", "bob")
    (record,) = await one.claim(1, LEASE)
    await one.finish(record, "failed")
    await add(one, "batch_3")
    clock.now += 100
    await one.forget(101)
    assert (await one.get("batch_0", "ann")).status == "failed"
    await one.forget(99)
    with pytest.raises(BatchNotKept):
        await one.get("batch_0", "ann")


async def test_owners_take_turns(two):
    one, other, _ = two
    for number in range(3):
        await add(one, f"ann_{number}")
    for name in ("bob", "cid"):
        await add(one, f"{name}_0", name)
    assert [record.id for record in await one.claim(2, LEASE)] == ["ann_0", "bob_0"]
    # An owner of whom nothing is held comes first, even where there is no more room for others.
    assert [record.id for record in await other.claim(0, LEASE, first_of_owner=2)] == ["cid_0"]
    assert [record.id for record in await other.claim(1, LEASE, first_of_owner=2)] == ["ann_1"]


async def test_clients_without_keys_are_left_to_processes_without_keys(two, tmp_path):
    one, _, _ = two
    await add(one, "batch_1", "")
    assert await one.claim(1, LEASE, first_of_owner=1) == []
    database = Database(tmp_path / "db", FILES_SCHEMA + BATCHES_SCHEMA, what="batches", hint="")
    await add(one, "batch_2", "ann")
    keyless = BatchTable(database, "three", max_open=5, max_own=3)
    assert [record.id for record in await keyless.claim(4, LEASE)] == ["batch_1"]
    await database.close()
