"""Waits until a directory changes or a process ends: what `FileDiscovery` does nearly all of the time.

A look at either several times a second costs an idle process more than everything else that it does: caches are cold
then, and one file of ``/proc`` takes 80 us. Linux tells of both by itself, by ``inotify`` and ``pidfd_open``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import time
from collections.abc import Set as AbstractSet
from pathlib import Path

from dynamo.runtime.discovery import process

__all__ = ["Wait"]

# inotify(7): names that come, go and are moved in, and the directory's own end. Heartbeats show as none of these.
_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x01000000
_MASK = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_EVENT_BYTES = 65536
#: Changes come in groups (a file is made, then moved into place), and each group is to be looked at once.
_GROUP_SECONDS = 0.02


class Wait:
    """What ends a wait. Belongs to one thread, except :meth:`wake`."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._processes: dict[process.Owner, int | None] = {}
        """Their descriptors; None: there is none for this process."""
        self._woken, self._waker = os.pipe()
        self._poll.register(self._woken, select.POLLIN)
        self._libc = ctypes.CDLL(None)
        self._events = _inotify(self._libc)
        if self._events is not None:
            self._poll.register(self._events, select.POLLIN)

    def for_changes(self, directory: Path) -> bool:
        """End waits when names in `directory` come, go or are replaced; False: that cannot be told.

        To be said again after each wait: the directory may be another one by then.
        """
        if self._events is None:
            return False
        return bool(self._libc.inotify_add_watch(self._events, os.fsencode(directory), _MASK) >= 0)

    def for_ends(self, owners: AbstractSet[process.Owner]) -> bool:
        """End waits when one of `owners`, and of no others, ends; False: that cannot be told of all."""
        for owner in self._processes.keys() - owners:
            descriptor = self._processes.pop(owner)
            if descriptor is not None:
                self._poll.unregister(descriptor)
                os.close(descriptor)
        for owner in owners - self._processes.keys():
            descriptor = _descriptor(owner[0])
            if descriptor is not None:
                self._poll.register(descriptor, select.POLLIN)
            self._processes[owner] = descriptor
        return None not in self._processes.values()

    def __call__(self, seconds: float) -> bool:
        """Sleep until something has happened, or `seconds` are over; False then."""
        if not self._poll.poll(max(0.0, seconds) * 1000):
            return False
        time.sleep(_GROUP_SECONDS)
        if self._events is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._events, _EVENT_BYTES)
        return True

    def wake(self) -> None:
        """End this wait and all that follow; may be called on any thread."""
        os.write(self._waker, b"x")

    def close(self) -> None:
        """Give everything back; not while somebody waits."""
        self.for_ends(frozenset())
        for descriptor in (self._woken, self._waker, self._events):
            if descriptor is not None:
                os.close(descriptor)


def _descriptor(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or not allowed, or ended
        return None


def _inotify(libc: ctypes.CDLL) -> int | None:
    """A descriptor of events; None where there are none, or no more."""
    try:
        descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except AttributeError:
        return None
    return descriptor if descriptor >= 0 else None
