"""RemoteConfig with a real etcd: values are laid over what a process started with, and survive bad ones and outages."""

import asyncio
import contextlib
from typing import ClassVar

import pytest

from dynamo.config import Settings, setting
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.settings import EtcdSettings
from dynamo.runtime.etcd.target import EtcdTarget
from dynamo.runtime.remote_config import RemoteConfig

WAIT_SECONDS = 20


class Limits(Settings):
    """Settings of the test."""

    section: ClassVar[str] = "limits"

    busy_tokens: int = setting(100, ge=1)
    """A threshold."""
    overlap_weight: float = setting(1.0)
    """A parameter."""


class Seen:
    """What a callback was told."""

    def __init__(self):
        self.values = []
        self._changed = asyncio.Condition()
        self._tasks = set()

    def __call__(self, settings):
        self.values.append((settings.busy_tokens, settings.overlap_weight))
        task = asyncio.ensure_future(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self):
        async with self._changed:
            self._changed.notify_all()

    async def until(self, *expected):
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.values[-1:] == [expected]), WAIT_SECONDS)


@pytest.fixture
async def connection(etcd):
    connection = EtcdConnection(EtcdTarget.parse(etcd.url, EtcdSettings()))
    yield connection
    await connection.close()


@pytest.fixture
async def config(etcd):
    async with contextlib.AsyncExitStack() as stack:

        def make(namespace="ns"):
            config = RemoteConfig(etcd.url, namespace, settings=EtcdSettings())
            stack.push_async_callback(config.close)
            config.start()
            return config

        yield make


KEY = b"/dynamo/config/ns/limits"


async def test_values_are_laid_over_what_the_process_started_with(config, connection):
    await connection.put(KEY, b'{"busy_tokens": 5}')
    seen, plain = Seen(), Seen()
    remote = config()
    remote.watch("limits", Limits, seen, base=Limits(overlap_weight=2.0))
    remote.watch("limits", Limits, plain)
    await seen.until(5, 2.0)
    await plain.until(5, 1.0)
    await connection.put(KEY, b'{"overlap_weight": 3}')
    await seen.until(100, 3.0)
    await connection.delete(KEY)
    await seen.until(100, 2.0)
    assert seen.values == [(5, 2.0), (100, 3.0), (100, 2.0)]
    late = Seen()
    await connection.put(KEY, b'{"busy_tokens": 6}')
    await seen.until(6, 2.0)
    remote.watch("limits", Limits, late)
    await late.until(6, 1.0)


async def test_other_namespaces_and_sections_do_not_matter(config, connection):
    seen = Seen()
    config().watch("limits", Limits, seen)
    for key in (b"/dynamo/config/n/limits", b"/dynamo/config/ns2/limits", KEY + b"2", KEY + b"/busy_tokens"):
        await connection.put(key, b'{"busy_tokens": 7}')
    await connection.put(KEY, b'{"busy_tokens": 8}')
    await seen.until(8, 1.0)
    assert seen.values == [(8, 1.0)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"\x80\x04.", "not a JSON object"),
        (b"[" * 60_000, "not a JSON object"),
        (b'{"busy_tokens": 0}', "busy_tokens"),
        (b'{"busy_tokens": "many"}', "busy_tokens"),
        (b'{"busy_tokens": 9, "overlap_weigth": 1}', "overlap_weight"),
        (b'{"busy_tokens": 9}' + b" " * 70_000, "larger than"),
    ],
    ids=["empty", "list", "pickle", "deep", "out of range", "wrong type", "unknown key", "too large"],
)
async def test_wrong_values_are_logged_once_and_ignored(config, connection, caplog, value, reason):
    seen = Seen()
    config().watch("limits", Limits, seen)
    await connection.put(KEY, b'{"busy_tokens": 2}')
    await seen.until(2, 1.0)
    await connection.put(KEY, value)
    await connection.put(KEY, b'{"busy_tokens": 3}')
    await seen.until(3, 1.0)
    assert seen.values == [(2, 1.0), (3, 1.0)]
    (message,) = [record.message for record in caplog.records if record.name.startswith("dynamo.")]
    assert "/dynamo/config/ns/limits" in message
    assert reason in message
    assert len(message) < 1000


async def test_the_last_known_values_survive_an_etcd_that_forgot_them(etcd, config, connection, caplog):
    seen, other = Seen(), Seen()
    remote = config()
    remote.watch("limits", Limits, seen)
    remote.watch("other", Limits, other)
    await connection.put(KEY, b'{"busy_tokens": 2}')
    await seen.until(2, 1.0)
    etcd.kill()
    etcd.wipe()
    await asyncio.to_thread(etcd.start)
    await connection.check(WAIT_SECONDS)
    await connection.put(b"/dynamo/config/ns/other", b'{"busy_tokens": 4}')
    await other.until(4, 1.0)
    assert seen.values == [(2, 1.0)]
    late = Seen()
    remote.watch("limits", Limits, late)
    await late.until(2, 1.0)
    await connection.put(KEY, b"{}")
    await seen.until(100, 1.0)
    assert sum("last known configuration" in message for message in caplog.messages) <= 1


async def test_a_callback_that_fails_does_not_stop_the_others(config, connection):
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context["exception"]))
    seen = Seen()
    remote = config()

    def fail(settings):
        raise ZeroDivisionError

    remote.watch("limits", Limits, fail)
    remote.watch("limits", Limits, seen)
    await connection.put(KEY, b'{"busy_tokens": 2}')
    await seen.until(2, 1.0)
    await connection.put(KEY, b'{"busy_tokens": 3}')
    await seen.until(3, 1.0)
    assert [type(failure) for failure in failures] == [ZeroDivisionError] * 2


async def test_close_without_start_and_twice(etcd):
    remote = RemoteConfig(etcd.url, "ns", settings=EtcdSettings())
    await remote.close()
    remote = RemoteConfig(etcd.url, "ns", settings=EtcdSettings())
    remote.start()
    await remote.close()
    await remote.close()
