"""The instances that this process knows: one watch of discovery, kept alive, shared by all who ask.

An outage of the backend deletes nothing here; the watch is begun again and what it then shows replaces what was known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

from dynamo.errors import DynamoError
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.discovery import Discovery, InstanceRecord

__all__ = ["InstanceListener", "Instances"]

logger = logging.getLogger(__name__)

#: Called with what happened to a record; in order, on the event loop.
InstanceListener: TypeAlias = Callable[[Literal["put", "delete"], InstanceRecord], None]


class Instances:
    """Live table of the instances of one namespace."""

    def __init__(self, discovery: Discovery, namespace: str, *, retry_seconds: float = 1.0) -> None:
        """`retry_seconds` pass between the end of a watch and the next one."""
        self._discovery = discovery
        self._namespace = namespace
        self._retry_seconds = retry_seconds
        self._records: dict[tuple[EndpointAddress, int], InstanceRecord] = {}
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
            except DynamoError as error:
                logger.warning("discovery is not available (%s); going on with what is known", error.message)
            except Exception:
                # A backend may be foreign code: its bug must not freeze for good what this process knows.
                logger.exception("the watch of discovery failed; going on with what is known")
            await asyncio.sleep(self._retry_seconds)

    async def _watch(self) -> None:
        seen: set[tuple[EndpointAddress, int]] = set()
        synced = False
        async for event in self._discovery.watch(self._namespace):
            record = event.record
            if event.kind == "synced" or record is None:
                for key in [key for key in self._records if key not in seen]:
                    self._tell("delete", self._records.pop(key))
                synced = True
                self.synced.set()
                continue
            key = (record.address, record.instance_id)
            if event.kind == "delete":
                known = self._records.pop(key, None)
                if known is not None:
                    self._tell("delete", known)
                continue
            if not synced:
                seen.add(key)
            if self._records.get(key) != record:
                self._records[key] = record
                self._tell("put", record)

    def _tell(self, kind: Literal["put", "delete"], record: InstanceRecord) -> None:
        for listener in self._listeners:
            listener(kind, record)
