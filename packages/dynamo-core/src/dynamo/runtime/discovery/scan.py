"""Reads a directory of leases again and again, cheaply, and decides which of them hold.

`FileDiscovery` calls :meth:`LeaseScanner.scan` on its thread; an unchanged file costs one ``stat``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dynamo.errors import DiscoveryError
from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.discovery import process
from dynamo.runtime.discovery.hub import RecordKey
from dynamo.runtime.discovery.lease_file import FileIdentity, Lease, read_lease

__all__ = ["LeaseScanner"]

logger = logging.getLogger(__name__)


@dataclass
class _Entry:
    """One lease file as this scanner saw it."""

    identity: FileIdentity
    lease: Lease | None
    """The last good content; None if there was none."""
    heartbeat_at: float
    """By the scanner's own clock, so that a jump of the wall clock (a laptop that slept) expires nothing."""


class LeaseScanner:
    """The leases of one directory, seen by one reader."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._inode: int | None = None
        self._back_since = float("-inf")

    def scan(self) -> dict[RecordKey, InstanceRecord]:
        """The records whose leases hold. Files of lost leases are removed.

        A directory that was away comes back empty, and its owners need a heartbeat to fill it again: for the length
        of their lease, records that are missing from it stay, unless their process has ended.

        Raises:
            DiscoveryError: the directory cannot be read, or belongs to somebody else. Nothing is forgotten.
        """
        now = self._clock()
        try:
            found = self._list(now)
        except OSError as error:
            self._inode = -1
            raise DiscoveryError(f"cannot read discovery directory {self._directory}: {error.strerror}") from error
        for name in self._entries.keys() - found.keys():
            lease = self._entries[name].lease
            if lease is None or now >= self._back_since + lease.seconds:
                del self._entries[name]
        for name, status in found.items():
            self._observe(name, status, now)
        return self._holding(now)

    def _list(self, now: float) -> dict[str, os.stat_result]:
        status = self._directory.stat()
        if status.st_uid != os.geteuid():
            raise PermissionError(None, f"it belongs to user {status.st_uid}")
        found = {}
        with os.scandir(self._directory) as listing:
            for item in listing:
                if item.name.endswith(".json") and not item.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        found[item.name] = item.stat(follow_symlinks=False)
        if self._inode not in (None, status.st_ino):
            self._back_since = now
        self._inode = status.st_ino
        return found

    def _observe(self, name: str, status: os.stat_result, now: float) -> None:
        identity = FileIdentity.of(status)
        known = self._entries.get(name)
        if known is not None and known.identity == identity:
            return
        try:
            lease = read_lease(self._directory / name)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            logger.warning("ignoring discovery file %s: %s", self._directory / name, error)
            previous = known or _Entry(identity, None, now)
            self._entries[name] = _Entry(identity, previous.lease, previous.heartbeat_at)
            return
        heartbeat_at = now
        if known is None and lease.host != process.host_identity():
            # Whether its process runs cannot be asked, so a file that was old at first sight gets no new lease.
            heartbeat_at -= max(0.0, time.time() - status.st_mtime)
        self._entries[name] = _Entry(identity, lease, heartbeat_at)

    def _holding(self, now: float) -> dict[RecordKey, InstanceRecord]:
        running: dict[tuple[int, str], bool] = {}
        records = {}
        for name, entry in list(self._entries.items()):
            lease = entry.lease
            if lease is None:
                continue
            holds = now < entry.heartbeat_at + lease.seconds
            if holds and lease.host == process.host_identity():
                owner = (lease.pid, lease.process_start)
                if owner not in running:
                    running[owner] = process.runs(*owner)
                holds = running[owner]
            if holds:
                records[RecordKey(lease.record.address, lease.record.instance_id)] = lease.record
            else:
                self._remove(name)
        return records

    def _remove(self, name: str) -> None:
        # An owner that was only slow writes its file again at its next heartbeat.
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            logger.debug("cannot remove lost lease %s: %s", name, error)
        else:
            del self._entries[name]
