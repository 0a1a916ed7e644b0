"""The instances that this process knows: one watch of discovery, kept alive, shared by all who ask.

An outage of the backend deletes nothing here; the watch is begun again and what it then shows replaces what was known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

from dynamo.errors import DiscoveryError
from dynamo.protocols.discovery import Discovery, InstanceRecord

__all__ = ["InstanceListener", "Instances"]

logger = logging.getLogger(__name__)

#: Called with what happened to a record; in order, on the event loop.
InstanceListener: TypeAlias = Callable[[Literal["put", "delete"], InstanceRecord], None]

_RETRY_SECONDS = 1.0


class Instances:
    """Live table of the instances of one namespace."""

    def __init__(self, discovery: Discovery, namespace: str) -> None:
        self._discovery = discovery
        self._namespace = namespace
        self._records: dict[int, InstanceRecord] = {}
        self._listeners: list[InstanceListener] = []
        self._task: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop watching."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def listen(self, listener: InstanceListener) -> None:
        """Tell `listener` what is known now, then every change."""
        self._listeners.append(listener)
        for record in list(self._records.values()):
            listener("put", record)

    def all(self) -> list[InstanceRecord]:
        """What is known now."""
        return list(self._records.values())

    async def _run(self) -> None:
        while True:
            try:
                await self._watch()
                logger.warning("discovery ended its watch; watching again")
            except DiscoveryError as error:
                logger.warning("discovery is not available (%s); going on with what is known", error.message)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _watch(self) -> None:
        seen: set[int] = set()
        synced = False
        async for event in self._discovery.watch(self._namespace):
            record = event.record
            if event.kind == "synced" or record is None:
                for instance_id in [i for i in self._records if i not in seen]:
                    self._tell("delete", self._records.pop(instance_id))
                synced = True
                self.synced.set()
            elif event.kind == "delete":
                if self._records.pop(record.instance_id, None) is not None:
                    self._tell("delete", record)
            else:
                if not synced:
                    seen.add(record.instance_id)
                if self._records.get(record.instance_id) != record:
                    self._records[record.instance_id] = record
                    self._tell("put", record)

    def _tell(self, kind: Literal["put", "delete"], record: InstanceRecord) -> None:
        for listener in self._listeners:
            listener(kind, record)
