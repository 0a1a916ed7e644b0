"""When a replica that died is started again. Pure: `dynamo.serve.replica` passes in what happened."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dynamo.serve.launcher import EXIT_CANNOT_START

__all__ = ["FATAL_EXIT_CODES", "Backoff", "RestartPolicy"]

#: Starting again cannot help: a wrong setting (the processes of the stack end with EX_CONFIG), a wrong flag (argparse
#: and click end with 2), no such command.
FATAL_EXIT_CODES = frozenset({2, os.EX_CONFIG, EXIT_CANNOT_START})


@dataclass(frozen=True)
class RestartPolicy:
    """How patient the scheduler is."""

    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 30.0
    stable_after_seconds: float = 60.0
    """A replica that was ready and lived this long starts over with the first delay."""
    max_failed_starts: int = 3
    """A replica that has never been ready is given up after this many exits."""


class Backoff:
    """The delays of one replica: doubled with each exit."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._exits = 0
        self._ever_ready = False

    def delay_seconds(self, exit_code: int, *, was_ready: bool, uptime_seconds: float) -> float | None:
        """How long to wait before the next start; None: give up."""
        policy = self._policy
        self._ever_ready = self._ever_ready or was_ready
        if was_ready and uptime_seconds >= policy.stable_after_seconds:
            self._exits = 0
        self._exits += 1
        if exit_code in FATAL_EXIT_CODES:
            return None
        if not self._ever_ready and self._exits >= policy.max_failed_starts:
            return None
        # The exponent is bounded so that a replica that dies for weeks does not overflow a float.
        doubled = policy.first_delay_seconds * 2.0 ** min(self._exits - 1, 30)
        return min(doubled, policy.max_delay_seconds)
