"""What a worker is believed to hold because requests were routed to it, for workers that publish no KV events.

A belief ends after a while (`lifetime_seconds`) or when more was routed than the worker has blocks, oldest use first.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

__all__ = ["RoutedBlocks"]


class RoutedBlocks:
    """Beliefs about one worker, longest unused first. `now` is any monotonic clock, in seconds."""

    def __init__(self, lifetime_seconds: float, capacity_blocks: int) -> None:
        """`capacity_blocks` 0: not known, and not a bound."""
        self._lifetime = lifetime_seconds
        self._capacity = capacity_blocks
        self._used_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._used_at)

    def use(self, hashes: Sequence[int], now: float) -> list[int]:
        """The worker gets a prompt of these blocks; which of the earlier ones it is believed to have dropped for it."""
        used_at = self._used_at
        # From the end of the prompt, so that a block never outlives those that it hangs on.
        # Without a loop in Python, which for a prompt of 6,000 blocks took a millisecond.
        deque(map(used_at.pop, hashes, itertools.repeat(None)), maxlen=0)
        used_at.update(dict.fromkeys(reversed(hashes), now))
        surplus = len(used_at) - self._capacity if self._capacity else 0
        return self._drop(list(itertools.islice(used_at, max(0, surplus))))

    def expire(self, now: float) -> list[int]:
        """Drop the beliefs that are too old; which they were."""
        old = itertools.takewhile(lambda item: now - item[1] >= self._lifetime, self._used_at.items())
        return self._drop([sequence_hash for sequence_hash, _ in old])

    def _drop(self, hashes: list[int]) -> list[int]:
        for sequence_hash in hashes:
            del self._used_at[sequence_hash]
        return hashes
