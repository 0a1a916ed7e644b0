"""EtcdDiscovery while etcd dies, hangs, comes back with or without its data, and while owners die.

The outages last longer than a lease, which is a few seconds here. Watchers must see nobody go who lives.
"""

import asyncio
import contextlib
import logging
import signal

import pytest

from dynamo.errors import DiscoveryError
from dynamo.runtime.discovery.etcd_records import namespace_prefix
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.settings import EtcdSettings
from dynamo.runtime.etcd.target import EtcdTarget

pytestmark = pytest.mark.e2e

LEASE_SECONDS = 3
WAIT_SECONDS = 40


@pytest.fixture
def discovery(etcd, etcd_discovery):
    return lambda: etcd_discovery(etcd.url, lease_seconds=LEASE_SECONDS)


@pytest.fixture
def start_owner(etcd, owner_process):
    """Another process that registers one instance."""
    return lambda instance_id: owner_process(etcd.url, instance_id, ETCD_LEASE_TTL=str(LEASE_SECONDS))


class History:
    """All events of a watch, as they come."""

    def __init__(self, events):
        self.known = set()
        self.deleted = []
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read(events))

    async def _read(self, events):
        async for event in events:
            async with self._changed:
                if event.kind == "put":
                    self.known.add(event.record.instance_id)
                elif event.kind == "delete":
                    self.known.remove(event.record.instance_id)
                    self.deleted.append(event.record.instance_id)
                self._changed.notify_all()

    async def until(self, expected):
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.known == expected), WAIT_SECONDS)

    async def close(self):
        self._task.cancel()
        await asyncio.wait({self._task})


@pytest.fixture
async def history():
    async with contextlib.AsyncExitStack() as stack:

        def begin(discovery):
            history = History(discovery.watch("ns"))
            stack.push_async_callback(history.close)
            return history

        yield begin


async def until(condition):
    async def wait():
        while not condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), WAIT_SECONDS)


async def longer_than_a_lease():
    # No event tells that a lease of a dead server would have run out.
    await asyncio.sleep(LEASE_SECONDS + 0.5)


async def until_etcd_holds(etcd, instance_ids):
    """What etcd itself has, whatever watchers believe."""
    connection = EtcdConnection(EtcdTarget.parse(etcd.url, EtcdSettings()))
    expected = {b"%014x" % instance_id for instance_id in instance_ids}

    async def wait():
        while True:
            with contextlib.suppress(DiscoveryError):
                held = (await connection.read(namespace_prefix("ns"))).values
                if {key.rpartition(b"/")[2] for key in held} == expected:
                    return
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), WAIT_SECONDS)
    await connection.close()


async def test_processes_that_are_killed_stopped_or_hung(start_owner, discovery, history):
    killed, stopped, hung = await asyncio.gather(*(asyncio.to_thread(start_owner, number) for number in (1, 2, 3)))
    seen = history(await discovery())
    await seen.until({1, 2, 3})
    killed.send_signal(signal.SIGKILL)
    hung.send_signal(signal.SIGSTOP)
    stopped.stdin.close()
    await seen.until(set())
    assert seen.deleted[0] == 2  # at once, the others when their leases have run out
    hung.send_signal(signal.SIGCONT)
    await seen.until({3})


@pytest.mark.parametrize("data", ["same data", "no data"])
async def test_a_long_outage_deletes_nobody_who_lives(etcd, discovery, history, record, caplog, data):
    caplog.set_level(logging.INFO)
    owners = [await discovery() for _ in range(3)]
    for number, owner in enumerate(owners):
        await owner.register(record(number))
    reader = await discovery()
    seen = history(reader)
    await seen.until({0, 1, 2})

    caplog.clear()
    etcd.kill()
    await until(lambda: sum("known instances stay in use" in message for message in caplog.messages) == 4)
    await owners[2].close()  # dies while nobody can be told
    await longer_than_a_lease()
    assert [r.instance_id for r in await reader.list("ns")] == [0, 1, 2]
    assert seen.deleted == []
    # One warning for each process, however often it tried; and one of the owner that closed.
    assert [r.levelname for r in caplog.records if r.name.startswith("dynamo.")] == ["WARNING"] * 5

    if data == "no data":
        etcd.wipe()
    await asyncio.to_thread(etcd.start)
    await until_etcd_holds(etcd, {0, 1})
    await seen.until({0, 1})
    assert seen.deleted == [2]
    await owners[0].register(record(7))
    await seen.until({0, 1, 7})
    assert seen.deleted == [2]
    await until(lambda: sum("works again" in message for message in caplog.messages) >= 3)


async def test_a_hung_etcd_deletes_nobody_who_lives(etcd, discovery, history, record):
    owner, reader = await discovery(), await discovery()
    await owner.register(record(1))
    seen = history(reader)
    await seen.until({1})
    etcd.pause()
    await longer_than_a_lease()
    etcd.resume()
    late = await discovery()
    await late.register(record(2))
    await seen.until({1, 2})
    await until_etcd_holds(etcd, {1, 2})
    await late.close()
    await seen.until({1})
    assert seen.deleted == [2]


async def test_what_is_withdrawn_in_an_outage_is_gone_after_it(etcd, discovery, history, record):
    owner, reader = await discovery(), await discovery()
    await owner.register(record(1))
    await owner.register(record(2))
    seen = history(reader)
    await seen.until({1, 2})
    etcd.kill()
    await owner.unregister(record(1))
    with pytest.raises(DiscoveryError, match="refused"):
        await owner.register(record(3))
    await asyncio.to_thread(etcd.start)
    await until_etcd_holds(etcd, {2})
    await seen.until({2})


async def test_a_watch_that_begins_in_an_outage_waits_for_its_end(etcd, discovery, history, record):
    owner, reader = await discovery(), await discovery()
    await owner.register(record(1))
    etcd.kill()
    seen = history(reader)
    with pytest.raises(DiscoveryError):
        await reader.list("ns")
    assert seen.known == set()
    await asyncio.to_thread(etcd.start)
    await seen.until({1})


async def test_compaction_during_an_outage_loses_nothing(etcd, discovery, history, record):
    owner, reader = await discovery(), await discovery()
    seen = history(reader)
    for step in range(20):
        await owner.register(record(1, metadata={"step": str(step)}))
    await seen.until({1})
    etcd.kill()
    # Keeps the newest revision only, from its start on.
    etcd.arguments += ["--auto-compaction-mode=revision", "--auto-compaction-retention=1"]
    await asyncio.to_thread(etcd.start)
    await until_etcd_holds(etcd, {1})
    await owner.register(record(2))
    await owner.unregister(record(1))
    await seen.until({2})
