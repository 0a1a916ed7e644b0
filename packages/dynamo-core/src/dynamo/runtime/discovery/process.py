"""Which process wrote a lease, and whether it still lives.

A process id alone is not enough: ids are used again, a killed child stays a zombie until its parent asks for it, and a
directory shared between containers holds ids of several process namespaces.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import TypeAlias

__all__ = ["Owner", "host_identity", "process_start", "runs"]

#: Process id and start, as :func:`runs` takes them.
Owner: TypeAlias = "tuple[int, str]"

#: Linux writes about 350, of which the name of the command is at most 64.
_STAT_BYTES = 4096


@functools.cache
def host_identity() -> str:
    """Names what process ids are unique in: this boot of this machine and, on Linux, the process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return platform.node()
    return f"{boot}/{namespace}"


def process_start(pid: int) -> str:
    """When process `pid` started, in a form that only equality is asked of; empty where there is no ``/proc``.

    Raises:
        ProcessLookupError: it ended (a zombie has).
    """
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        os.kill(pid, 0)
        return ""
    try:
        stat = os.read(descriptor, _STAT_BYTES)
    finally:
        os.close(descriptor)
    # "pid (command) state ...": the command may hold anything, also spaces and brackets.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return fields[19].decode("ascii")


def runs(pid: int, start: str) -> bool:
    """Whether the process that started at `start` (see :func:`process_start`) still lives on this host."""
    try:
        return process_start(pid) == start
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to somebody else
        return True
