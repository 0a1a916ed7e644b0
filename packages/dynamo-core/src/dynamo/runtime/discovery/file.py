"""Discovery between the processes of one machine, through a directory: what ``dynamo serve`` uses.

Each process writes its records as lease files and renews them. On Linux a watcher sleeps until the kernel tells it of a
file that came or went, or of a process that ended (`dynamo.runtime.discovery.waiting`), and looks by itself only when a
lease may be over. Where not all of that can be told, it looks every `poll_seconds`. No server is needed.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
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
from dynamo.runtime.discovery.waiting import Wait

__all__ = ["FileDiscovery"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: A heartbeat that failed is tried again this soon.
_RETRY_SECONDS = 0.5
_CLOSE_SECONDS = 5.0
_ELSEWHERE = "choose a directory with DYN_STATE_DIR or --discovery-backend file:///directory"
_FULL = f"make room on its disk (`df -h` and `df -i` show it), or {_ELSEWHERE}"


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
        #: Of the scanner: `list` uses it on the thread above, watches on one that polls.
        self._scanning = threading.Lock()
        self._hub = RecordHub()
        self._last_known: dict[RecordKey, InstanceRecord] | None = None
        #: Touched on the thread only.
        self._own: dict[str, _OwnLease] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._polling: tuple[threading.Thread, Wait] | None = None
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
        if self._renewing is None and not self._closing.is_set():
            self._renewing = asyncio.create_task(self._keep_renewing(), name="discovery heartbeat")

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
            await self._on_thread(self._scan)
        except DiscoveryError:
            if self._last_known is None:
                raise
        return [*in_namespace(self._last_known or {}, namespace).values()]

    async def watch(self, namespace: str | None = None) -> AsyncIterator[DiscoveryEvent]:
        """See `Discovery.watch`; ends when this instance is closed."""
        if self._polling is None and not self._closing.is_set():
            arguments = asyncio.get_running_loop(), Wait()
            thread = threading.Thread(target=self._poll, args=arguments, name="dynamo-discovery-poll", daemon=True)
            self._polling = thread, arguments[1]
            thread.start()
        async for event in self._hub.watch(namespace, self._closing.is_set):
            yield event

    async def close(self) -> None:
        """See `Discovery.close`."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._hub.wake()
        if self._renewing is not None:
            await asyncio.wait({self._renewing}, timeout=_CLOSE_SECONDS)
        if self._polling is not None:
            thread, wait = self._polling
            wait.wake()
            await asyncio.to_thread(thread.join, _CLOSE_SECONDS)
            if not thread.is_alive():
                wait.close()
        await self._on_thread(lambda: self._withdraw([*self._own]))
        self._closed = True
        self._thread.shutdown(wait=False)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise DiscoveryError(f"discovery in {self._directory} is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as error:
            raise DiscoveryError(
                f"discovery directory {self._directory}: {error.strerror or error}",
                hint=_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else _ELSEWHERE,
            ) from error

    def _scan(self) -> dict[RecordKey, InstanceRecord]:
        with self._scanning:
            records = self._last_known = self._scanner.scan()
        return records

    def _poll(self, loop: asyncio.AbstractEventLoop, wait: Wait) -> None:
        """Tell the watches of `loop` what changes; runs on a thread of its own, to wake the loop for changes only."""
        scanner, outage = self._scanner, _Outage("the last known instances stay in use")
        told: dict[RecordKey, InstanceRecord] | None = None
        while not self._closing.is_set():
            # Before the look: what changes during it ends the wait after it.
            is_watched = wait.for_changes(self._directory)
            try:
                records = self._scan()
            except (OSError, DiscoveryError) as error:
                outage.begin(error)
                is_watched = False
            else:
                outage.end()
                if records != told:
                    told = records
                    with contextlib.suppress(RuntimeError):  # a loop that was closed has no watches
                        loop.call_soon_threadsafe(self._hub.replace, records)
            # Of what other hosts do in a directory that they share nobody tells.
            is_watched = wait.for_ends(scanner.owners) and is_watched and scanner.only_local
            wait(scanner.due_seconds if is_watched else self._poll_seconds)

    async def _keep_renewing(self) -> None:
        outage = _Outage("this process's registrations are repeated until they hold")
        while not self._closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                pause = _RETRY_SECONDS if outage.lasts else self._lease_seconds / 4
                await asyncio.wait_for(self._closing.wait(), pause)
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

    def begin(self, error: Exception) -> None:
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
