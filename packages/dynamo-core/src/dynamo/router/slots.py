"""Small numbers for workers: their places in the bit sets of a prefix index. Numbers of gone workers are used again."""

from __future__ import annotations

import heapq

from dynamo.protocols.addressing import WorkerKey

__all__ = ["Slots"]


class Slots:
    """Workers of one model and their numbers."""

    def __init__(self) -> None:
        self._by_worker: dict[WorkerKey, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._by_worker)

    def take(self, worker: WorkerKey) -> int:
        """The number of `worker`, the lowest free one if it has none."""
        slot = self._by_worker.get(worker)
        if slot is None:
            slot = heapq.heappop(self._free) if self._free else len(self._by_worker)
            self._by_worker[worker] = slot
        return slot

    def release(self, worker: WorkerKey) -> None:
        """`worker` is gone. What the number stood for must have been forgotten everywhere before."""
        heapq.heappush(self._free, self._by_worker.pop(worker))
