"""Reads a directory of leases again and again, cheaply, and decides which of them hold.

`FileDiscovery` calls :meth:`LeaseScanner.scan` on its threads; an unchanged file costs one ``stat``.
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

#: Files are looked at this often, or four times in their lease: a heartbeat is seen no other way.
_LOOK_SECONDS = 2.5


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
        self._scanned_at = float("-inf")
        self._scan_due = float("-inf")
        self.owners: frozenset[process.Owner] = frozenset()
        """The other processes of this host that held a lease at the last scan."""
        self.only_local = True
        """Whether all leases were those of processes of this host."""

    @property
    def due_seconds(self) -> float:
        """How soon another scan is needed if nothing happens that can be told of."""
        return self._scan_due - self._clock()

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
        records = self._holding(now)
        self._scanned_at = now
        self._scan_due = min([now + _LOOK_SECONDS, *(_look_again_at(entry, now) for entry in self._entries.values())])
        return records

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
        heartbeat_at = now - max(0.0, time.time() - status.st_mtime)
        if known is not None:
            # It came after the last look, whatever the wall clock has done meanwhile.
            heartbeat_at = max(heartbeat_at, self._scanned_at)
        elif lease.host == process.host_identity():
            # Where it can be asked whether the process runs, an old file at first sight means a slept machine.
            heartbeat_at = now
        self._entries[name] = _Entry(identity, lease, heartbeat_at)

    def _holding(self, now: float) -> dict[RecordKey, InstanceRecord]:
        running: dict[process.Owner, bool] = {}
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
        leases = [entry.lease for entry in self._entries.values() if entry.lease is not None]
        self.only_local = all(lease.host == process.host_identity() for lease in leases)
        self.owners = frozenset(owner for owner, runs in running.items() if runs and owner[0] != os.getpid())
        return records

    def _remove(self, name: str) -> None:
        # An owner that was only slow writes its file again at its next heartbeat.
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            logger.debug("cannot remove lost lease %s: %s", name, error)
        else:
            del self._entries[name]


def _look_again_at(entry: _Entry, now: float) -> float:
    """When a scan has to look at `entry` again, should nothing else show before."""
    if entry.lease is None:
        return float("inf")
    return min(entry.heartbeat_at + entry.lease.seconds, now + entry.lease.seconds / 4)
