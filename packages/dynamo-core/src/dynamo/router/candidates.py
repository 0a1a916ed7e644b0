"""The workers of one model that may take a request, and the policy that chooses among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dynamo.errors import Overloaded
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.planes import RequestPlane
from dynamo.protocols.routing import RouteRequest
from dynamo.router.explain import Decision, DecisionLog
from dynamo.router.kv_state import KvState
from dynamo.router.metrics import ModelRouterMetrics
from dynamo.router.policy import Choice, RouterPolicy
from dynamo.router.route import Route
from dynamo.router.settings import RouterSettings
from dynamo.router.worker import Candidate

__all__ = ["Candidate", "CandidateTable"]


class CandidateTable:
    """Candidates by routing key, and the policy that chooses among them. `now` is any monotonic clock, in seconds."""

    def __init__(
        self,
        policy: RouterPolicy,
        settings: RouterSettings | None = None,
        *,
        plane: RequestPlane | None = None,
        metrics: ModelRouterMetrics | None = None,
        decisions: DecisionLog | None = None,
    ) -> None:
        """`plane` is how workers are asked for their cache; `decisions` keeps what is decided, None nothing."""
        self._metrics = metrics
        self._decisions = decisions
        self.configure(policy, settings or RouterSettings())
        self._kv = KvState(self._settings, plane, metrics) if policy.needs_facts else None
        self._candidates: dict[WorkerKey, Candidate] = {}
        self._ordered: list[Candidate] = []

    def __len__(self) -> int:
        return len(self._ordered)

    def configure(self, policy: RouterPolicy, settings: RouterSettings) -> None:
        """Decide by `policy`, of the same mode, and `settings` from now on; what is known of workers stays."""
        self._policy = policy
        self._settings = settings
        self._watches_load = (
            settings.active_prefill_tokens_threshold is not None or settings.active_decode_blocks_threshold is not None
        )

    def put(self, record: InstanceRecord) -> None:
        """Add an instance, or take over its new record; requests in flight stay counted."""
        ranks = max(1, record.card.dp_size) if record.card is not None else 1
        self._keep(lambda key: key.instance_id != record.id or key.dp_rank < ranks)
        for rank in range(ranks):
            key = WorkerKey(record.id, rank)
            known = self._candidates.get(key)
            if known is None:
                known = self._candidates[key] = Candidate(key, record)
            known.record = record
            if self._kv is not None:
                known.kv = self._kv.put(key, record)
        self._order()

    def remove(self, instance_id: int) -> None:
        """Forget an instance."""
        self._keep(lambda key: key.instance_id != instance_id)
        self._order()

    def records(self) -> list[InstanceRecord]:
        """One record per instance."""
        return list({candidate.record.instance_id: candidate.record for candidate in self._ordered}.values())

    def take_load(self, load: WorkerLoad, now: float) -> None:
        """What a worker published; other models' workers are ignored."""
        for rank in load.ranks:
            candidate = self._candidates.get(WorkerKey(InstanceId(load.instance_id), rank.dp_rank))
            if candidate is not None:
                candidate.set_load(rank, now)

    def take_events(self, batch: KvEventBatch) -> None:
        """KV events that a worker published."""
        if self._kv is not None:
            self._kv.take_events(batch)

    def caught_up(self) -> bool:
        """Whether no worker is being asked for the content of its cache."""
        return self._kv is None or not self._kv.indexer.asking()

    def select(self, request: RouteRequest, now: float) -> Candidate:
        """The candidate for `request`; the caller calls its `sent`, and at the end `ended`. Books nothing.

        Raises:
            NoInstances: there is none.
            Overloaded: all are beyond a threshold.
        """
        return self._candidates[self._choose(request, now).chosen.key]

    def route(self, request: RouteRequest, now: float) -> Route:
        """Choose a worker for `request` and count it as its work until `Route.end`.

        Raises:
            NoInstances: there is none.
            Overloaded: all are beyond a threshold.
        """
        choice = self._choose(request, now)
        candidate = self._candidates[choice.chosen.key]
        if self._metrics is not None:
            self._metrics.decided()
        if self._decisions is not None:
            self._decisions.add(self._decision(request, choice))
        booking = None
        if self._kv is not None:
            everybody = [self._candidates[other.key] for other in choice.candidates]
            booking = self._kv.book(request, candidate, everybody, now)
        return Route(candidate, booking)

    async def close(self) -> None:
        """Stop what runs in the background."""
        if self._kv is not None:
            await self._kv.close()

    def _choose(self, request: RouteRequest, now: float) -> Choice:
        usable: Sequence[Candidate] = [c for c in self._ordered if c.breaker.closed or c.breaker.allows(now)]
        # With every circuit open a try costs nothing that waiting would save.
        usable = usable or self._ordered
        if self._watches_load and usable:
            usable = self._not_busy(usable, request, now)
        if self._kv is not None:
            self._kv.measure(request, usable, now)
        return self._policy.decide(request, usable)

    def _decision(self, request: RouteRequest, choice: Choice) -> Decision:
        return Decision(
            request_id=request.request_id,
            model=request.model,
            mode=self._settings.router_mode,
            unix_seconds=time.time(),
            prompt_tokens=request.prompt_tokens,
            chosen=choice.chosen.key,
            workers=[candidate.key for candidate in choice.candidates],
            facts=[candidate.facts for candidate in choice.candidates],
            scores=choice.scores,
        )

    def _not_busy(self, usable: Sequence[Candidate], request: RouteRequest, now: float) -> list[Candidate]:
        for candidate in usable:
            candidate.forget_old_load(now)
        free = [candidate for candidate in usable if not candidate.busy(self._settings)]
        if not free:
            raise Overloaded(f"all workers of {request.model!r} are busy", retry_after_seconds=1)
        return free

    def _keep(self, wanted: Callable[[WorkerKey], bool]) -> None:
        for key in [key for key in self._candidates if not wanted(key)]:
            del self._candidates[key]
            if self._kv is not None:
                self._kv.remove(key)

    def _order(self) -> None:
        self._ordered = [self._candidates[key] for key in sorted(self._candidates)]
