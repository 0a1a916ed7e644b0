"""The current records of a backend and everybody who watches them.

Backends put what they know here; watchers compare it with what they last reported. A watcher that is slow therefore
costs one copy of the records, not a queue that grows, and can miss no final state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import NamedTuple

from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.discovery import DiscoveryEvent, InstanceRecord

__all__ = ["RecordHub", "RecordKey", "changes", "in_namespace"]


class RecordKey(NamedTuple):
    """What makes two records the same one: an instance has a record for each endpoint it serves."""

    address: EndpointAddress
    instance_id: int

    @classmethod
    def of(cls, record: InstanceRecord) -> RecordKey:
        """The key of `record`.

        Raises:
            ConfigError: a part of its address is not a valid name.
        """
        return cls(EndpointAddress.of(record.namespace, record.component, record.endpoint), record.instance_id)


Records = Mapping[RecordKey, InstanceRecord]


def in_namespace(records: Records, namespace: str | None) -> dict[RecordKey, InstanceRecord]:
    """The records of one namespace, or all, in the order of their keys."""
    return {key: records[key] for key in sorted(records) if namespace is None or key.address.namespace == namespace}


def changes(before: Records, after: Records) -> Iterator[DiscoveryEvent]:
    """The events that lead from one set of records to another: deletions first."""
    for key, record in before.items():
        if key not in after:
            yield DiscoveryEvent("delete", record)
    for key, record in after.items():
        if before.get(key) != record:
            yield DiscoveryEvent("put", record)


class RecordHub:
    """Records of one backend on one event loop."""

    def __init__(self, records: Records | None = None) -> None:
        """`records` None: nothing is known yet, and watchers wait for the first :meth:`replace`."""
        self._records: dict[RecordKey, InstanceRecord] | None = None if records is None else dict(records)
        self._wakers: set[asyncio.Event] = set()

    @property
    def records(self) -> Records:
        """The records now."""
        return self._records or {}

    def replace(self, records: Records) -> None:
        """Set all records at once."""
        if self._records != records:
            self._records = dict(records)
            self.wake()

    def wake(self) -> None:
        """Make every watcher look again, e.g. because its backend closes."""
        for waker in self._wakers:
            waker.set()

    async def watch(self, namespace: str | None, closed: Callable[[], bool]) -> AsyncIterator[DiscoveryEvent]:
        """See `Discovery.watch`; ends when `closed` says so at a wake-up.

        Changes that undo each other between two steps of the watcher are not reported.
        """
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            reported: dict[RecordKey, InstanceRecord] = {}
            synced = False
            while not closed():
                waker.clear()
                if self._records is not None:
                    current = in_namespace(self._records, namespace)
                    for event in changes(reported, current):
                        yield event
                    reported = current
                    if not synced:
                        synced = True
                        yield DiscoveryEvent("synced")
                await waker.wait()
        finally:
            self._wakers.discard(waker)
