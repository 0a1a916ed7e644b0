"""What a process knows of the others, whatever its discovery backend goes through."""

from __future__ import annotations

import asyncio
import logging

import pytest

from dynamo.errors import DiscoveryError
from dynamo.protocols.discovery import Discovery, DiscoveryEvent, InstanceRecord
from dynamo.runtime.instances import Instances

TIMEOUT = 10.0
SYNCED = DiscoveryEvent("synced")


class ScriptedDiscovery:
    """A discovery backend whose watches do what the test says: yield an event, raise an error, or end (None)."""

    def __init__(self) -> None:
        self.script: asyncio.Queue[DiscoveryEvent | Exception | None] = asyncio.Queue()
        self.watched: list[str | None] = []

    def say(self, *steps: DiscoveryEvent | Exception | None) -> None:
        for step in steps:
            self.script.put_nowait(step)

    async def start(self) -> None: ...

    async def register(self, record: InstanceRecord) -> None: ...

    async def unregister(self, record: InstanceRecord) -> None: ...

    async def list(self, namespace: str | None = None) -> list[InstanceRecord]:
        return []

    async def watch(self, namespace: str | None = None):
        self.watched.append(namespace)
        while True:
            step = await self.script.get()
            if step is None:
                return
            if isinstance(step, Exception):
                raise step
            yield step

    async def close(self) -> None: ...


def record(instance_id: int, endpoint: str = "generate", **metadata: str) -> InstanceRecord:
    return InstanceRecord("ns", "backend", endpoint, instance_id, metadata=metadata)


def put(instance_id: int, endpoint: str = "generate", **metadata: str) -> DiscoveryEvent:
    return DiscoveryEvent("put", record(instance_id, endpoint, **metadata))


def delete(instance_id: int, endpoint: str = "generate") -> DiscoveryEvent:
    return DiscoveryEvent("delete", record(instance_id, endpoint))


class Told:
    """A listener that can be waited for."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, int]] = []
        self._more = asyncio.Event()

    def __call__(self, kind, changed) -> None:
        self.changes.append((kind, changed.instance_id))
        self._more.set()

    async def until(self, *expected: tuple[str, int]) -> None:
        """All that was told since the last call."""

        async def enough() -> None:
            while len(self.changes) < len(expected):
                self._more.clear()
                await self._more.wait()

        await asyncio.wait_for(enough(), TIMEOUT)
        assert self.changes == list(expected)
        self.changes = []


@pytest.fixture
def discovery() -> ScriptedDiscovery:
    return ScriptedDiscovery()


@pytest.fixture
async def instances(discovery: Discovery):
    made = Instances(discovery, "ns", retry_seconds=0.0)
    made.start()
    yield made
    await made.close()


@pytest.fixture
def told(instances) -> Told:
    listener = Told()
    instances.listen(listener)
    return listener


def known(instances: Instances) -> list[int]:
    return sorted(found.instance_id for found in instances.all())


async def test_puts_and_deletes_reach_table_and_listener(discovery, instances, told):
    discovery.say(put(1), put(2), SYNCED, delete(1), put(3))
    await told.until(("put", 1), ("put", 2), ("delete", 1), ("put", 3))
    assert known(instances) == [2, 3]
    assert discovery.watched == ["ns"]


async def test_synced_says_that_discovery_was_read(discovery, instances):
    assert not instances.synced.is_set()
    discovery.say(SYNCED)
    await asyncio.wait_for(instances.synced.wait(), TIMEOUT)
    assert instances.all() == []


async def test_a_late_listener_hears_what_is_known(discovery, instances, told):
    discovery.say(put(1), put(2), SYNCED)
    await told.until(("put", 1), ("put", 2))
    late = Told()
    instances.listen(late)
    assert late.changes == [("put", 1), ("put", 2)]


async def test_a_record_that_did_not_change_is_not_told_again(discovery, instances, told):
    discovery.say(put(1), SYNCED, put(1), put(1, zone="b"), delete(9), delete(1))
    await told.until(("put", 1), ("put", 1), ("delete", 1))


async def test_one_instance_may_serve_several_endpoints(discovery, instances, told):
    discovery.say(put(1), put(1, "admin"), SYNCED, put(1), delete(1, "admin"))
    await told.until(("put", 1), ("put", 1), ("delete", 1))
    assert [found.endpoint for found in instances.all()] == ["generate"]


@pytest.mark.parametrize("outage", [DiscoveryError("etcd is gone"), None, OSError("a bug of the backend")])
async def test_an_outage_deletes_nothing(discovery, instances, told, outage):
    discovery.say(put(1), put(2), SYNCED, outage)
    await told.until(("put", 1), ("put", 2))
    discovery.say(put(2), put(3))
    await told.until(("put", 3))
    assert known(instances) == [1, 2, 3]
    assert len(discovery.watched) == 2


@pytest.mark.parametrize("outage", [DiscoveryError("etcd is gone"), None, OSError("a bug of the backend")])
async def test_after_an_outage_the_new_watch_decides(discovery, instances, told, outage):
    discovery.say(put(1), put(2), put(2, "admin"), SYNCED, outage)
    await told.until(("put", 1), ("put", 2), ("put", 2))
    discovery.say(put(2), put(3), SYNCED)
    await told.until(("put", 3), ("delete", 1), ("delete", 2))
    assert [(found.instance_id, found.endpoint) for found in instances.all()] == [(2, "generate"), (3, "generate")]


async def test_an_outage_before_synced_forgets_what_was_half_seen(discovery, instances, told):
    discovery.say(put(1), DiscoveryError("gone"), put(2), SYNCED)
    await told.until(("put", 1), ("put", 2), ("delete", 1))


async def test_many_outages_in_a_row(discovery, instances, told, caplog):
    with caplog.at_level(logging.WARNING):
        discovery.say(put(1), SYNCED, *[DiscoveryError("no route")] * 5, put(1), put(2), SYNCED)
        await told.until(("put", 1), ("put", 2))
    assert known(instances) == [1, 2]
    assert caplog.text.count("discovery is not available (no route); going on with what is known") == 5


async def test_closing_stops_the_watch_and_tells_nobody(discovery, instances, told):
    discovery.say(put(1), SYNCED)
    await told.until(("put", 1))
    await instances.close()
    await instances.close()
    discovery.say(put(2))
    assert (told.changes, known(instances), discovery.script.qsize()) == ([], [1], 1)
