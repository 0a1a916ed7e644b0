"""Ends all replicas when ``dynamo serve`` is gone, however it went.

The scheduler starts one guardian and tells it each process group over a pipe (``+PGID``, ``-PGID``). The kernel closes
the pipe when the scheduler dies, SIGKILL included; the guardian then stops every group that is left: SIGTERM, a short
grace, SIGKILL. It leads a session of its own, so that signals to the scheduler's group or terminal do not reach it.
Works alike on Linux and macOS, and reaches grandchildren, which ``PR_SET_PDEATHSIG`` does not. Standard library only,
run with ``-I -S``.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

__all__ = ["GRACE_SECONDS", "main"]

#: Between SIGTERM and SIGKILL of what a dead scheduler left behind.
GRACE_SECONDS = 3.0


def main() -> None:
    """Follow stdin until it ends, then stop what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        (groups.add if line[0] == "+" else groups.discard)(group)
    alive = _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = _signal(alive, 0)
    _signal(alive, signal.SIGKILL)


def _signal(groups: Iterable[int], number: int) -> set[int]:
    """Signal each group; those that still exist."""
    alive = set()
    for group in groups:
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):  # macOS answers EPERM when only zombies are left
            continue
        alive.add(group)
    return alive


if __name__ == "__main__":
    main()
