"""Why a worker was chosen: what every candidate had at that moment, kept for a while.

`CandidateTable` records, the frontend shows: header ``x-dynamo-explain``, ``GET /debug/routing``, ``dynamo explain``.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec

from dynamo.protocols.addressing import WorkerKey, format_instance_id
from dynamo.protocols.load import EngineLoad
from dynamo.router.core.cost import WorkerFacts, uncached_tokens
from dynamo.router.regret import PendingTtft

__all__ = ["Decision", "DecisionLog", "decision_listener", "queue_wait"]

#: Told of the decisions that are made on behalf of the current request; set by who answers it, where somebody asked.
decision_listener: ContextVar[Callable[[Decision], None] | None] = ContextVar("decision_listener", default=None)
#: Seconds that the current request waited in the router's queue; set by the queue when it lets it go.
queue_wait: ContextVar[float] = ContextVar("queue_wait", default=0.0)


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
    loads: list[EngineLoad | None]
    """What the workers last said of themselves."""
    ttft: PendingTtft | None = None
    """What is predicted, and what becomes of it; None where workers are not measured."""
    owner: str = ""
    """Tenant (API key) that the request belongs to; empty where nobody has a name."""
    queued_seconds: float = 0.0
    """How long the request waited in the router before."""
    claimed_by: str = ""
    """The request plane whose broker chose, by the worker's own claim; empty: the router did."""

    def margin(self) -> float | None:
        """How much higher the winner scored than the best of the others, in blocks of cost; None without others."""
        won = self.scores[self.workers.index(self.chosen)]
        others = [score for worker, score in zip(self.workers, self.scores, strict=True) if worker != self.chosen]
        return won - max(others) if others else None

    def to_json(self) -> dict[str, Any]:
        """For people and programs."""
        candidates = [self._candidate(place) for place in range(len(self.workers))]
        margin = self.margin()
        return {
            "request_id": self.request_id,
            "model": self.model,
            "mode": self.mode,
            "unix_seconds": round(self.unix_seconds, 6),
            "prompt_tokens": self.prompt_tokens,
            "worker": format_instance_id(self.chosen.instance_id),
            "dp_rank": self.chosen.dp_rank,
            "chosen_by": self.claimed_by or "router",
            "margin_blocks": None if margin is None else round(margin, 3),
            "queued_seconds": round(self.queued_seconds, 6),
            "ttft": self._outcome(),
            "candidates": sorted(candidates, key=lambda candidate: candidate["cost_blocks"]),
        }

    def _candidate(self, place: int) -> dict[str, Any]:
        worker, facts, load = self.workers[place], self.facts[place], self.loads[place]
        predicted = self.ttft.predictions() if self.ttft is not None else None
        host, disk = facts.lower_tiers or (0, 0)
        return {
            "worker": format_instance_id(worker.instance_id),
            "dp_rank": worker.dp_rank,
            "chosen": worker == self.chosen,
            "cost_blocks": round(-self.scores[place], 3),
            "overlap_blocks": facts.overlap_blocks,
            "host_blocks": host,
            "disk_blocks": disk,
            "new_blocks": facts.new_blocks,
            "uncached_tokens": uncached_tokens(facts, self.prompt_tokens),
            "active_prefill_tokens": facts.active_prefill_tokens,
            "active_decode_blocks": facts.active_decode_blocks,
            "active_requests": facts.active_requests,
            "block_size_tokens": facts.block_size,
            "predicted_ttft_seconds": None if predicted is None else round(predicted[place], 6),
            "reported": None if load is None else _reported(load),
        }

    def _outcome(self) -> dict[str, float | None] | None:
        outcome = self.ttft.outcome if self.ttft is not None else None
        if outcome is None:
            return None
        seconds: dict[str, float | None] = msgspec.to_builtins(outcome)
        return {f"{name}_seconds": None if value is None else round(value, 6) for name, value in seconds.items()}


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

    def last(self, number: int, owner: str | None = None) -> list[Decision]:
        """The last `number`, newest first; of one `owner`, or of all."""
        found = (decision for decision in reversed(self._decisions) if owner is None or decision.owner == owner)
        return list(itertools.islice(found, number))

    def find(self, request_id: str, owner: str | None = None) -> list[Decision]:
        """The decisions of one request, oldest first: one per choice and per worker that it moved to."""
        return [
            decision
            for decision in self._decisions
            if (owner is None or decision.owner == owner)
            and (decision.request_id == request_id or decision.request_id.startswith(f"{request_id}-"))
        ]


def _reported(load: EngineLoad) -> dict[str, int]:
    return {
        "waiting_requests": load.waiting_requests,
        "running_requests": load.running_requests,
        "used_kv_blocks": load.used_kv_blocks,
        "total_kv_blocks": load.total_kv_blocks,
    }
