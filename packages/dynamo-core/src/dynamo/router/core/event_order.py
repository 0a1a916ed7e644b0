"""Which batches of KV events of one worker may be applied, in which order, and when the worker must be asked.

Batches come over a plane that may lose, double and reorder them; their numbers say so (`dynamo.protocols.kv_events`).
Pure: `dynamo.router.indexer` does the asking.
"""

from __future__ import annotations

import enum
from collections import deque

from dynamo.protocols.kv_events import KvEventBatch

__all__ = ["EventOrder", "Verdict"]

#: Batches that are kept while the worker is asked. Beyond it the oldest go, and the worker is asked once more.
_KEPT_BATCHES = 1024


class Verdict(enum.Enum):
    """What to do with a batch."""

    APPLY = "applied"
    KEEP = "kept"
    """Wait: the worker is being asked."""
    ASK = "gap"
    """Something before it was lost: the batch is kept, and the worker must be asked."""
    DUPLICATE = "duplicate"
    STALE = "stale_epoch"
    """Of an earlier life of the worker."""


class EventOrder:
    """Where the events of one (instance, rank) stand."""

    def __init__(self) -> None:
        self.epoch = 0
        self.sequence = -1
        """Of the last batch that was applied."""
        self.asking = False
        """Whether the worker is being asked."""
        self._kept: deque[KvEventBatch] = deque(maxlen=_KEPT_BATCHES)

    def judge(self, batch: KvEventBatch) -> Verdict:
        """What to do with a batch that was published. APPLY counts it as applied."""
        if batch.epoch < self.epoch:
            return Verdict.STALE
        if self.asking:
            self._kept.append(batch)
            return Verdict.KEEP
        if batch.epoch == self.epoch:
            if batch.sequence <= self.sequence:
                return Verdict.DUPLICATE
            if batch.sequence == self.sequence + 1:
                self.sequence = batch.sequence
                return Verdict.APPLY
        self.asking = True
        self._kept.append(batch)
        return Verdict.ASK

    def judge_answer(self, batch: KvEventBatch) -> Verdict:
        """What to do with a batch that the worker answered with."""
        if batch.snapshot:
            self.epoch, self.sequence = batch.epoch, batch.sequence
            return Verdict.APPLY
        if batch.epoch != self.epoch:
            return Verdict.STALE
        if batch.sequence == self.sequence + 1:
            self.sequence = batch.sequence
            return Verdict.APPLY
        # A large snapshot comes in parts, all with the number at which it is valid.
        return Verdict.APPLY if batch.sequence == self.sequence else Verdict.DUPLICATE

    def answered(self) -> list[KvEventBatch]:
        """The worker has answered: what came meanwhile and follows the answer without a hole, counted as applied.

        What is behind a hole is dropped; the next batch that is published shows the hole again.
        """
        self.asking = False
        kept = sorted((batch for batch in self._kept if batch.epoch == self.epoch), key=lambda batch: batch.sequence)
        self._kept.clear()
        following = []
        for batch in kept:
            if batch.sequence == self.sequence + 1:
                self.sequence = batch.sequence
                following.append(batch)
        return following

    def go_on_at(self, batch: KvEventBatch) -> None:
        """Nobody can be asked: accept what was lost, and `batch` as applied."""
        self.asking = False
        self._kept.clear()
        self.epoch, self.sequence = batch.epoch, batch.sequence
