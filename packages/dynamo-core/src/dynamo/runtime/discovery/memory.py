"""Discovery within one process: tests, and everything that runs in one event loop."""

from __future__ import annotations

import builtins
import weakref
from collections.abc import AsyncIterator

import msgspec

from dynamo.protocols.discovery import DiscoveryEvent, InstanceRecord
from dynamo.runtime.discovery.hub import RecordHub, RecordKey, in_namespace

__all__ = ["MemoryDiscovery"]


class _Space(RecordHub):
    """The records of one URL."""


#: Lives as long as somebody uses the URL, so that one test's records do not reach the next.
_SPACES: weakref.WeakValueDictionary[str, _Space] = weakref.WeakValueDictionary()


class MemoryDiscovery:
    """Implements `dynamo.protocols.discovery.Discovery`; instances made with one URL share their records.

    There is no lease: who registers and its watchers live and die together.
    """

    def __init__(self, url: str = "memory://") -> None:
        space = _SPACES.get(url)
        if space is None:
            space = _SPACES[url] = _Space({})
        self._space = space
        self._own: set[RecordKey] = set()
        self._closed = False

    async def start(self) -> None:
        """Nothing to connect to."""

    async def register(self, record: InstanceRecord) -> None:
        """See `Discovery.register`. The record is copied: later changes of it need another call."""
        key = RecordKey.of(record)
        copy = msgspec.json.decode(msgspec.json.encode(record), type=InstanceRecord)
        self._own.add(key)
        self._space.replace({**self._space.records, key: copy})

    async def unregister(self, record: InstanceRecord) -> None:
        """See `Discovery.unregister`."""
        self._withdraw({RecordKey.of(record)})

    async def list(self, namespace: str | None = None) -> builtins.list[InstanceRecord]:
        """See `Discovery.list`."""
        return [*in_namespace(self._space.records, namespace).values()]

    def watch(self, namespace: str | None = None) -> AsyncIterator[DiscoveryEvent]:
        """See `Discovery.watch`; ends when this instance is closed."""
        return self._space.watch(namespace, lambda: self._closed)

    async def close(self) -> None:
        """See `Discovery.close`."""
        self._closed = True
        self._withdraw(set(self._own))
        self._space.wake()

    def _withdraw(self, keys: set[RecordKey]) -> None:
        self._own -= keys
        self._space.replace({key: record for key, record in self._space.records.items() if key not in keys})
