"""Discovery between the processes of one machine, through a directory: what ``dynamo serve`` uses.

Each process writes its records as lease files and renews them; each watcher reads the directory a few times a second.
No server is needed, and a killed process is noticed as soon as the directory is read again.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from dynamo.errors import ConfigError, DiscoveryError
from dynamo.protocols.discovery import DiscoveryEvent, InstanceRecord
from dynamo.runtime.discovery import process
from dynamo.runtime.discovery.hub import RecordHub, RecordKey, in_namespace
from dynamo.runtime.discovery.lease_file import (
    FileIdentity,
    Lease,
    file_name,
    prepare_directory,
    sweep_temporaries,
    touch,
    write_lease,
)
from dynamo.runtime.discovery.scan import LeaseScanner

__all__ = ["FileDiscovery"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: A heartbeat that failed is tried again this soon.
_RETRY_SECONDS = 0.5
_CLOSE_SECONDS = 5.0


class FileDiscovery:
    """Implements `dynamo.protocols.discovery.Discovery` on ``file:///directory``.

    Whatever a record holds is decoded into `InstanceRecord` or ignored; the directory must be this user's own. A
    record is gone when its process ended (on this host, at once) or its heartbeat stopped for `lease_seconds`.
    """

    def __init__(self, url: str, *, lease_seconds: float = 10.0, poll_seconds: float = 0.2) -> None:
        self._directory = _directory_of(url)
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        # One thread: file operations happen in the order they were asked for, even if the asker was cancelled, and
        # heartbeats do not wait behind other users of the loop's own pool.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dynamo-discovery")
        self._scanner = LeaseScanner(self._directory)
        self._hub = RecordHub()
        self._last_known: dict[RecordKey, InstanceRecord] | None = None
        #: Touched on the thread only.
        self._own: dict[str, _OwnLease] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = asyncio.Event()
        self._closed = False

    async def start(self) -> None:
        """See `Discovery.start`: makes the directory, with mode 0700.

        Raises:
            DiscoveryError: it cannot be made, belongs to another user, or others can write to it.
        """
        await self._on_thread(lambda: prepare_directory(self._directory))
        await self._on_thread(lambda: sweep_temporaries(self._directory))

    async def register(self, record: InstanceRecord) -> None:
        """See `Discovery.register`."""
        name = file_name(record)
        pid = os.getpid()
        lease = Lease(record, process.host_identity(), pid, process.process_start(pid), self._lease_seconds)
        data = msgspec.json.encode(lease)

        def write() -> None:
            self._own[name] = _OwnLease(data, write_lease(self._directory, name, data))

        await self._on_thread(write)
        self._ensure("heartbeat", self._keep_renewing)

    async def unregister(self, record: InstanceRecord) -> None:
        """See `Discovery.unregister`."""
        name = file_name(record)
        if not self._closed:
            await self._on_thread(lambda: self._withdraw([name]))

    async def list(self, namespace: str | None = None) -> builtins.list[InstanceRecord]:
        """See `Discovery.list`; the last known records if the directory cannot be read now.

        Raises:
            DiscoveryError: it cannot be read, and never was.
        """
        try:
            records = await self._scan()
        except DiscoveryError:
            if self._last_known is None:
                raise
            records = self._last_known
        return [*in_namespace(records, namespace).values()]

    async def watch(self, namespace: str | None = None) -> AsyncIterator[DiscoveryEvent]:
        """See `Discovery.watch`; ends when this instance is closed."""
        self._ensure("poll", self._keep_polling)
        async for event in self._hub.watch(namespace, self._closing.is_set):
            yield event

    async def close(self) -> None:
        """See `Discovery.close`."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._hub.wake()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_CLOSE_SECONDS)
        await self._on_thread(lambda: self._withdraw([*self._own]))
        self._closed = True
        self._thread.shutdown(wait=False)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise DiscoveryError(f"discovery in {self._directory} is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as error:
            raise DiscoveryError(f"discovery directory {self._directory}: {error.strerror or error}") from error

    def _ensure(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        if name not in self._tasks and not self._closing.is_set():
            self._tasks[name] = asyncio.create_task(work(), name=f"discovery {name}")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _scan(self) -> dict[RecordKey, InstanceRecord]:
        self._last_known = await self._on_thread(self._scanner.scan)
        return self._last_known

    async def _keep_polling(self) -> None:
        outage = _Outage("the last known instances stay in use")
        while not self._closing.is_set():
            try:
                self._hub.replace(await self._scan())
            except DiscoveryError as error:
                outage.begin(error)
            else:
                outage.end()
            await self._pause(self._poll_seconds)

    async def _keep_renewing(self) -> None:
        outage = _Outage("this process's registrations are repeated until they hold")
        while not self._closing.is_set():
            await self._pause(_RETRY_SECONDS if outage.lasts else self._lease_seconds / 4)
            try:
                await self._on_thread(self._renew)
            except DiscoveryError as error:
                outage.begin(error)
            else:
                outage.end()

    def _renew(self) -> None:
        failure: Exception | None = None
        for name, own in self._own.items():
            try:
                own.written = touch(self._directory / name, own.written) or write_lease(self._directory, name, own.data)
            except (OSError, DiscoveryError) as error:  # the other leases are renewed all the same
                failure = error
        if failure is not None:
            raise failure

    def _withdraw(self, names: builtins.list[str]) -> None:
        for name in names:
            self._own.pop(name, None)
            try:
                (self._directory / name).unlink(missing_ok=True)
            except OSError as error:
                logger.warning("cannot remove %s, its lease will run out: %s", self._directory / name, error)


@dataclass
class _OwnLease:
    """What this process registered, and the file that it believes to be in place."""

    data: bytes
    written: FileIdentity


@dataclass
class _Outage:
    """Says once that something fails, and once that it works again."""

    meanwhile: str
    lasts: bool = False

    def begin(self, error: DiscoveryError) -> None:
        if not self.lasts:
            logger.warning("%s; %s", error, self.meanwhile)
        self.lasts = True

    def end(self) -> None:
        if self.lasts:
            logger.info("discovery works again")
        self.lasts = False


def _directory_of(url: str) -> Path:
    path = url.removeprefix("file://")
    if path == url or not path.startswith("/"):
        raise ConfigError(
            f"discovery URL {url!r} does not name a directory", hint="write it as file:///absolute/directory"
        )
    return Path(path)
