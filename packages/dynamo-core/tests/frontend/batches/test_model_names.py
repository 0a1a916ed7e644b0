"""What a store remembers of the models that were served on it."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from dynamo.errors import EngineError
from dynamo.frontend.batches.model_names import MODEL_NAMES_SCHEMA, ModelNames
from dynamo.frontend.batches.table import BATCHES_SCHEMA
from dynamo.frontend.database import Database

KEPT = 3


@pytest.fixture
async def frontend(tmp_path):
    """Makes processes: each has a connection of its own, and a list of the names that it serves."""
    async with contextlib.AsyncExitStack() as stack:

        def make(*served, schema=BATCHES_SCHEMA + MODEL_NAMES_SCHEMA):
            database = Database(tmp_path / "db", schema, what="batches", hint="")
            stack.push_async_callback(database.close)
            names = list(served)
            return ModelNames(database, lambda: names, KEPT), names

        yield make


async def changes(tmp_path, work):
    """How many transactions of others `work` made, from 0 to 1 or more."""
    with contextlib.closing(sqlite3.connect(tmp_path / "db")) as observer:
        before = observer.execute("PRAGMA data_version").fetchone()
        await work()
        return before != observer.execute("PRAGMA data_version").fetchone()


async def test_others_learn_what_one_has_noted(frontend):
    one, served = frontend("a")
    other, _ = frontend()
    await one.note()
    assert "a" not in other
    await other.learn()
    assert "a" in other
    assert "b" not in other
    served.append("b")
    await one.note()
    await other.learn()
    assert "a" in other
    assert "b" in other


async def test_nothing_is_written_when_nothing_is_new(frontend, tmp_path):
    names, served = frontend("a", "b")
    assert await changes(tmp_path, names.note)
    assert not await changes(tmp_path, names.note)
    assert not await changes(tmp_path, names.learn)
    served.remove("a")  # an adapter that is gone, and comes back
    assert not await changes(tmp_path, names.note)
    served.append("a")
    assert not await changes(tmp_path, names.note)
    served.append("c")
    assert await changes(tmp_path, names.note)


async def test_a_new_process_knows_what_was_noted_before_it(frontend):
    gone, _ = frontend("a")
    await gone.note()
    new, _ = frontend()
    await new.learn()
    assert "a" in new


async def test_the_names_noted_first_are_forgotten(frontend):
    old, _ = frontend("a", "b")
    await old.note()
    new, served = frontend("c")
    await new.note()
    await new.learn()
    assert [name for name in "abc" if name in new] == ["a", "b", "c"]
    served.insert(0, "d")
    await new.note()
    await new.learn()
    assert [name for name in "abcd" if name in new] == ["b", "c", "d"]


async def test_of_more_names_than_are_remembered_the_last_stay(frontend):
    names, _ = frontend("adapter-1", "adapter-2", "adapter-3", "model", "alias")
    await names.note()
    await names.learn()
    assert [name for name in ("adapter-1", "adapter-2", "adapter-3", "model", "alias") if name in names] == [
        "adapter-3",
        "model",
        "alias",
    ]


async def test_a_store_of_an_earlier_version_gets_the_table(frontend):
    before, _ = frontend("a", schema=BATCHES_SCHEMA)
    with pytest.raises(EngineError, match="no such table"):
        await before.note()
    after, _ = frontend("a")
    await after.note()
    await after.learn()
    assert "a" in after
    # The name was not taken for noted when it was not.
    await before.note()
    await before.learn()
    assert "a" in before
