"""Fixtures of the discovery tests: two instances that share records, and watchers that cannot hang a test."""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys

import pytest

from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.discovery.etcd import EtcdDiscovery
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.runtime.discovery.memory import MemoryDiscovery
from dynamo.runtime.etcd.settings import EtcdSettings

WAIT_SECONDS = 20
_urls = itertools.count()

OWNER = """
import asyncio, sys
from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.discovery import create_discovery

async def main():
    discovery = create_discovery(sys.argv[1])
    await discovery.start()
    await discovery.register(InstanceRecord("ns", "worker", "generate", int(sys.argv[2]), {"tcp": "127.0.0.1:1"}))
    print("registered", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await discovery.close()

asyncio.run(main())
"""


class Watcher:
    """Reads a watch one event at a time, each within a bound."""

    def __init__(self, events):
        self._events = events

    async def next(self):
        return await asyncio.wait_for(self._events.__anext__(), WAIT_SECONDS)

    async def snapshot(self):
        """The records before ``synced``, by id."""
        records = {}
        while (event := await self.next()).kind != "synced":
            assert event.kind == "put"
            records[event.record.instance_id] = event.record
        return records

    async def until(self, expected_ids, known):
        """Apply changes to `known` (id to record) until its ids are `expected_ids`."""
        while set(known) != set(expected_ids):
            event = await self.next()
            if event.kind == "put":
                known[event.record.instance_id] = event.record
            else:
                assert event.kind == "delete"
                del known[event.record.instance_id]
        return known


@pytest.fixture
def record():
    def make(instance_id=1, *, namespace="ns", component="worker", endpoint="generate", **fields):
        return InstanceRecord(namespace, component, endpoint, instance_id, **fields)

    return make


@pytest.fixture
def owner_process():
    """``owner_process(url, instance_id, **env)`` gives another process that has registered one instance.

    It withdraws it when its stdin is closed.
    """
    children = []

    def start(url, instance_id, **env):
        child = subprocess.Popen(
            [sys.executable, "-c", OWNER, url, str(instance_id)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        children.append(child)
        assert child.stdout.readline() == "registered\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


@pytest.fixture
async def watch():
    """``watch(discovery, namespace=None)`` gives a Watcher that is closed after the test."""
    async with contextlib.AsyncExitStack() as stack:

        def begin(discovery, namespace=None):
            events = discovery.watch(namespace)
            stack.push_async_callback(events.aclose)
            return Watcher(events)

        yield begin


@pytest.fixture
async def file_discovery(tmp_path):
    """``file_discovery(**options)`` gives a started FileDiscovery; all share one directory and poll fast."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(directory=tmp_path / "state" / "discovery", **options):
            discovery = FileDiscovery(f"file://{directory}", **{"poll_seconds": 0.01, "lease_seconds": 10.0} | options)
            stack.push_async_callback(discovery.close)
            await discovery.start()
            return discovery

        yield make


@pytest.fixture
async def etcd_discovery():
    """``etcd_discovery(url, **settings)`` gives a started EtcdDiscovery that is closed after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(url, **settings):
            discovery = EtcdDiscovery(url, settings=EtcdSettings(**settings))
            stack.push_async_callback(discovery.close)
            await discovery.start()
            return discovery

        yield make


@pytest.fixture(params=["memory", "file", "etcd"])
async def pair(request, file_discovery, etcd_discovery):
    """Two started instances of one backend that share their records."""
    if request.param == "file":
        yield await file_discovery(), await file_discovery()
        return
    if request.param == "etcd":
        url = request.getfixturevalue("etcd_server").url
        yield await etcd_discovery(url), await etcd_discovery(url)
        return
    url = f"memory://{next(_urls)}"
    first, second = MemoryDiscovery(url), MemoryDiscovery(url)
    await first.start()
    await second.start()
    yield first, second
    await first.close()
    await second.close()
