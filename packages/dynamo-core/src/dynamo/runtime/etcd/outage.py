"""Says once that etcd is away, and once that it is back, for all tasks of a process that use it."""

from __future__ import annotations

import logging

from dynamo.errors import DiscoveryError

__all__ = ["Outage"]

logger = logging.getLogger(__name__)


class Outage:
    """Lasts from the first failure of any part until the last failing part works again."""

    def __init__(self, meanwhile: str) -> None:
        """`meanwhile` tells the user what goes on without etcd."""
        self._meanwhile = meanwhile
        self._failing: set[str] = set()

    def begin(self, part: str, error: DiscoveryError) -> None:
        """`part` failed, again or for the first time."""
        if not self._failing:
            logger.warning("%s; %s", error.message, self._meanwhile)
        self._failing.add(part)

    def end(self, part: str) -> None:
        """`part` works."""
        if part in self._failing:
            self._failing.remove(part)
            if not self._failing:
                logger.info("etcd works again")

    def affects(self, part: str) -> bool:
        """Whether `part` fails now."""
        return part in self._failing
