"""Why a worker was chosen: what every candidate had at that moment, kept for a while.

`CandidateTable` records, the frontend shows: header ``x-dynamo-explain``, ``GET /debug/routing``, ``dynamo explain``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec

from dynamo.protocols.addressing import WorkerKey, format_instance_id
from dynamo.router.core.cost import WorkerFacts

__all__ = ["Decision", "DecisionLog", "decision_listener"]

#: Told of the decisions that are made on behalf of the current request; set by who answers it, where somebody asked.
decision_listener: ContextVar[Callable[[Decision], None] | None] = ContextVar("decision_listener", default=None)


class Decision(msgspec.Struct, frozen=True):
    """One decision; the lists have one entry per candidate."""

    request_id: str
    model: str
    mode: str
    unix_seconds: float
    prompt_tokens: int
    chosen: WorkerKey
    workers: list[WorkerKey]
    facts: list[WorkerFacts]
    scores: list[float]

    def margin(self) -> float | None:
        """How much higher the winner scored than the best of the others, in blocks of cost; None without others."""
        won = self.scores[self.workers.index(self.chosen)]
        others = [score for worker, score in zip(self.workers, self.scores, strict=True) if worker != self.chosen]
        return won - max(others) if others else None

    def to_json(self) -> dict[str, Any]:
        """For people and programs."""
        candidates = [
            {
                "worker": format_instance_id(worker.instance_id),
                "dp_rank": worker.dp_rank,
                "chosen": worker == self.chosen,
                "cost_blocks": round(-score, 3),
                "overlap_blocks": facts.overlap_blocks,
                "host_blocks": facts.lower_tiers[0] if facts.lower_tiers is not None else 0,
                "disk_blocks": facts.lower_tiers[1] if facts.lower_tiers is not None else 0,
                "new_blocks": facts.new_blocks,
                "active_prefill_tokens": facts.active_prefill_tokens,
                "active_decode_blocks": facts.active_decode_blocks,
                "active_requests": facts.active_requests,
                "block_size_tokens": facts.block_size,
            }
            for worker, facts, score in zip(self.workers, self.facts, self.scores, strict=True)
        ]
        margin = self.margin()
        return {
            "request_id": self.request_id,
            "model": self.model,
            "mode": self.mode,
            "unix_seconds": round(self.unix_seconds, 6),
            "prompt_tokens": self.prompt_tokens,
            "worker": format_instance_id(self.chosen.instance_id),
            "dp_rank": self.chosen.dp_rank,
            "margin_blocks": None if margin is None else round(margin, 3),
            "candidates": sorted(candidates, key=lambda candidate: candidate["cost_blocks"]),
        }


class DecisionLog:
    """The last decisions of a frontend, over all models."""

    def __init__(self, size: int) -> None:
        self._decisions: deque[Decision] = deque(maxlen=size)

    def add(self, decision: Decision) -> None:
        """Keep one; tell who asked for it."""
        self._decisions.append(decision)
        listener = decision_listener.get()
        if listener is not None:
            listener(decision)

    def last(self, number: int) -> list[Decision]:
        """The last `number`, newest first."""
        return list(reversed(self._decisions))[:number]

    def find(self, request_id: str) -> list[Decision]:
        """The decisions of one request, oldest first: one per choice and per worker that it moved to."""
        return [
            decision
            for decision in self._decisions
            if decision.request_id == request_id or decision.request_id.startswith(f"{request_id}-")
        ]
