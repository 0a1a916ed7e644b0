"""The store in SQLite: owners, bounds, least recently used, several processes, broken files."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import stat

import pytest

from dynamo.errors import ConfigError, EngineError
from dynamo.frontend.sqlite_store import SqliteStore


@contextlib.asynccontextmanager
async def opened(path, entries=100, size=1 << 20):
    ticks = itertools.count(1)
    store = SqliteStore(path, entries, size, clock=lambda: float(next(ticks)))
    try:
        yield store
    finally:
        await store.close()


async def kept(store, *names):
    return [name for name in names if await store.get_response(name, "") is not None]


async def test_bodies_are_kept_by_owner(tmp_path):
    async with opened(tmp_path / "deep" / "store.sqlite") as store:
        await store.put_response("a", "mine", b"\x00body")
        assert await store.get_response("a", "mine") == b"\x00body"
        assert await store.get_response("a", "other") is None
        assert not await store.delete_response("a", "other")
        assert await store.delete_response("a", "mine")
        assert not await store.delete_response("a", "mine")
        assert await store.get_response("a", "mine") is None


async def test_the_least_recently_used_goes_first(tmp_path):
    async with opened(tmp_path / "s", entries=3) as store:
        for name in "abc":
            await store.put_response(name, "", b"x")
        assert await store.get_response("a", "") == b"x"
        await store.put_response("d", "", b"x")
        assert await kept(store, *"abcd") == ["a", "c", "d"]


async def test_bytes_are_bounded(tmp_path, caplog):
    async with opened(tmp_path / "s", size=100) as store:
        for name in "abcd":
            await store.put_response(name, "", bytes(40))
        assert await kept(store, *"abcd") == ["c", "d"]
        await store.put_response("huge", "", bytes(101))
        assert "huge is not kept" in caplog.text
        assert await kept(store, "c", "d", "huge") == ["c", "d"]
        await store.delete_response("c", "")
        await store.put_response("e", "", bytes(60))
        assert await kept(store, "d", "e") == ["d", "e"]


async def test_smaller_bounds_hold_after_a_restart(tmp_path):
    async with opened(tmp_path / "s") as store:
        for name in "abcdef":
            await store.put_response(name, "", b"x")
    async with opened(tmp_path / "s", entries=2) as store:
        assert await kept(store, *"abcdef") == list("abcdef")
        await store.put_response("g", "", b"x")
        assert await kept(store, *"abcdefg") == ["f", "g"]


async def test_two_processes_share_content_and_bounds(tmp_path):
    async with opened(tmp_path / "s", entries=10) as one, opened(tmp_path / "s", entries=10) as other:
        await asyncio.gather(
            *(
                store.put_response(f"{name}{i}", "", b"x")
                for i in range(20)
                for name, store in (("a", one), ("b", other))
            )
        )
        names = [f"{name}{i}" for i in range(20) for name in "ab"]
        assert len(await kept(one, *names)) == 10
        assert await kept(one, *names) == await kept(other, *names)


async def test_the_file_is_private(tmp_path):
    async with opened(tmp_path / "deep" / "s") as store:
        await store.put_response("a", "", b"x")
        for path in (tmp_path / "deep").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_a_file_that_is_no_database_is_reported(tmp_path):
    (tmp_path / "s").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="cannot open") as caught:
        SqliteStore(tmp_path / "s", 1, 1)
    assert "--state-dir" in (caught.value.hint or "")


async def test_what_fails_later_is_an_engine_error(tmp_path):
    async with opened(tmp_path / "s") as store:
        with contextlib.closing(sqlite3.connect(tmp_path / "s")) as database:
            database.execute("DROP TABLE responses")
        with pytest.raises(EngineError, match="no such table"):
            await store.put_response("a", "", b"x")
        with pytest.raises(EngineError):
            await store.get_response("a", "")
