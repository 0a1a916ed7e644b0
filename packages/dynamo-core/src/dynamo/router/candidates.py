"""The workers of one model that may take a request, and the policy that chooses among them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from dynamo.errors import DynamoError, Overloaded
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.claims import Claim, ClaimingPlane
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.planes import RequestPlane
from dynamo.protocols.routing import RouteRequest
from dynamo.router.core.cost import uncached_tokens
from dynamo.router.explain import Decision, DecisionLog, queue_wait
from dynamo.router.kv_state import KvState
from dynamo.router.metrics import ModelRouterMetrics
from dynamo.router.policy import Choice, RouterPolicy
from dynamo.router.queue import QueueTime, RouterQueue
from dynamo.router.queue_metrics import ModelQueueMetrics
from dynamo.router.regret import PendingTtft, RegretMeter
from dynamo.router.replica_sync import ReplicaSync
from dynamo.router.route import Route
from dynamo.router.settings import RouterSettings
from dynamo.router.shadow import ShadowPolicies, ShadowPolicy
from dynamo.router.thresholds import BusyThresholds
from dynamo.router.worker import Candidate, RemoteWork

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
        shadows: Sequence[ShadowPolicy] = (),
        model: str = "",
        replicas: ReplicaSync | None = None,
        queue_metrics: ModelQueueMetrics | None = None,
        queue_time: QueueTime | None = None,
        measures: bool = False,
    ) -> None:
        """`plane` is how workers are asked, for their cache and for claims; `decisions` keeps what is decided, or None.

        `shadows` look at every decision and take none. `replicas` tells other frontends of what is decided.
        `queue_time` None is real time. With `measures`, what workers are sent is known whatever the policy needs: a
        queue can be switched on later.
        """
        self.model = model
        self.queue: RouterQueue | None = None
        """Where requests ask whether to come to :meth:`route` now; None while that is always so."""
        self._queue_metrics = queue_metrics
        self._queue_time = queue_time
        self._replicas = replicas
        self._thresholds: BusyThresholds | None = None
        self._metrics = metrics
        self._decisions = decisions
        self._claiming: ClaimingPlane | None = plane if isinstance(plane, ClaimingPlane) else None
        self._policy = policy
        self.configure(policy, settings or RouterSettings())
        needs_facts = policy.needs_facts or any(shadow.policy.needs_facts for shadow in shadows)
        # Workers say what they were sent a quarter of a second late; a queue must know it at once.
        needs_facts = needs_facts or measures or self.queue is not None
        self._kv = KvState(self._settings, plane, metrics) if needs_facts else None
        self.regret = RegretMeter(metrics)
        share = self._settings.router_shadow_cpu_share
        self.shadows = ShadowPolicies(shadows, self.regret, cpu_share=share, metrics=metrics) if shadows else None
        self._candidates: dict[WorkerKey, Candidate] = {}
        self._ordered: list[Candidate] = []

    def __len__(self) -> int:
        return len(self._ordered)

    def configure(self, policy: RouterPolicy, settings: RouterSettings) -> None:
        """Decide by `policy`, of the same mode, and `settings` from now on; what is known stays."""
        if policy is not self._policy:
            policy.keep_sessions(self._policy)
        self._policy = policy
        self._settings = settings
        if self.queue is not None:
            self.queue.configure(settings)
        elif settings.router_queue_threshold is not None:
            self.queue = RouterQueue(self, settings, self._queue_metrics, self._queue_time)
        self.set_thresholds(self._thresholds)

    @property
    def overrides_for_all(self) -> bool:
        """Whether every client may bring cost parameters of its own."""
        return self._settings.router_request_overrides

    @property
    def pins_for_all(self) -> bool:
        """Whether every client may choose its worker; there is a mode in which that is how workers are chosen."""
        return self.overrides_for_all or self._settings.router_mode == "direct"

    @property
    def explains_to_all(self) -> bool:
        """Whether every client may be told of the decisions on its requests."""
        return self._settings.explain

    @property
    def thresholds(self) -> BusyThresholds:
        """From when on workers are busy."""
        return self._busy

    def set_thresholds(self, thresholds: BusyThresholds | None) -> None:
        """Use these from now on in place of those of the settings; None: those again."""
        self._thresholds = thresholds
        self._busy = self._settings.thresholds_of(self.model) if thresholds is None else thresholds
        self.poke()

    def poke(self) -> None:
        """A worker has got room, perhaps: the queue looks."""
        if self.queue is not None:
            self.queue.poke()

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
        self.poke()

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
        self.poke()

    def take_events(self, batch: KvEventBatch) -> None:
        """KV events that a worker published."""
        if self._kv is not None:
            self._kv.take_events(batch)

    def crowded(self, now: float) -> bool:
        """Whether every worker has lately said that requests wait at it; False when nobody says anything."""
        for candidate in self._ordered:
            candidate.forget_old_load(now)
        return bool(self._ordered) and all(
            candidate.load is not None and candidate.load.waiting_requests > 0 for candidate in self._ordered
        )

    def caught_up(self) -> bool:
        """Whether no worker is being asked for the content of its cache."""
        return self._kv is None or not self._kv.indexer.asking()

    def claim(self, request: RouteRequest, now: float) -> asyncio.Future[Claim | None] | None:
        """Ask workers which of them takes `request`, for :meth:`route` to be told; None: route it at once.

        Only where one is as good as another. Who claims it may be nobody that the filters have left.
        """
        # Who waits in the queue is let go by what is booked, and while workers are asked nothing is.
        if self._claiming is None or not self._policy.lenient or self.queue is not None:
            return None
        try:
            eligible = self._policy.eligible(request, self._usable(request, now))
        except DynamoError:
            return None  # `route` raises it
        return self._claiming.claim([candidate.record for candidate in eligible]) if len(eligible) > 1 else None

    def select(self, request: RouteRequest, now: float) -> Candidate:
        """The candidate for `request`; the caller calls its `sent`, and at the end `ended`. Books nothing.

        Raises:
            NoInstances: there is none.
            Overloaded: all are beyond a threshold.
        """
        return self._candidates[self._choose(request, now)[0].chosen.key]

    def route(self, request: RouteRequest, now: float) -> Route:
        """Choose a worker for `request` and count it as its work until `Route.end`.

        Raises:
            NoInstances: there is none.
            Overloaded: all are beyond a threshold.
        """
        return self._take(request, *self._choose(request, now), now)

    def reserve(self, request: RouteRequest, now: float) -> tuple[Route, Decision]:
        """As :meth:`route`, with what the decision was made of.

        Raises:
            NoInstances: there is none.
            Overloaded: all are beyond a threshold.
        """
        choice, usable = self._choose(request, now)
        route = self._take(request, choice, usable, now)
        return route, self._decision(request, choice, route.ttft)

    def decide(self, request: RouteRequest, now: float) -> Decision:
        """What would be decided for `request`, and of what. Books nothing.

        Raises:
            NoInstances: there is none.
            Overloaded: all are beyond a threshold.
        """
        choice, _ = self._choose(request, now)
        pending = self._pending_ttft(request, choice, now) if self._kv is not None else None
        return self._decision(request, choice, pending)

    def candidates(self) -> Sequence[Candidate]:
        """All there are, by routing key."""
        return self._ordered

    def _take(self, request: RouteRequest, choice: Choice, usable: Sequence[Candidate], now: float) -> Route:
        candidate = self._candidates[choice.chosen.key]
        self._policy.routed(request, candidate.key, now)
        if self.shadows is not None:
            self.shadows.watch(request, choice, usable, now)
        pending = self._pending_ttft(request, choice, now) if self._kv is not None else None
        if self._metrics is not None:
            self._metrics.decided()
        if self._decisions is not None:
            self._decisions.add(self._decision(request, choice, pending))
        booking = None
        if self._kv is not None:
            everybody = [self._candidates[other.key] for other in choice.candidates]
            booking = self._kv.book(request, candidate, everybody, now)
        number, facts = 0, candidate.facts
        if self._replicas is not None:
            number = self._replicas.book(candidate.key, uncached_tokens(facts, request.prompt_tokens), facts.new_blocks)
        watched = self if self._replicas is not None or self.queue is not None else None
        return Route(candidate, booking, pending, watch=watched, number=number)

    def prompt_computed(self, number: int) -> None:
        """See `RouteWatch`."""
        if self._replicas is not None:
            self._replicas.computed(number)
        self.poke()

    def route_ended(self, number: int) -> None:
        """See `RouteWatch`."""
        if self._replicas is not None:
            self._replicas.free(number)
        self.poke()

    def book_remote(self, worker: WorkerKey, prefill_tokens: int, blocks: int, now: float) -> RemoteWork | None:
        """Another frontend has sent a request to `worker`; None: it is not here."""
        candidate = self._candidates.get(worker)
        return None if candidate is None else RemoteWork(candidate, prefill_tokens, blocks, now)

    def has_room(self, request: RouteRequest, now: float) -> bool:
        """Whether a worker that could take `request` is below the threshold of the queue.

        Raises:
            NoInstances: there is none that could.
            Overloaded: all are beyond a threshold.
        """
        if self._kv is not None:
            self._kv.sweep(now)
        eligible = self._policy.eligible(request, self._usable(request, now))
        threshold = self._settings.router_queue_threshold
        if threshold is None:
            return True
        for candidate in eligible:
            candidate.forget_old_load(now)
        return any(candidate.has_room(threshold) for candidate in eligible)

    def kind(self, request: RouteRequest) -> Hashable | None:
        """See `dynamo.router.queue.WorkerRoom`."""
        # A filter that somebody added may look at anything.
        return None if self._settings.router_filters else (request.lora, request.pinned, request.excluded)

    def any_room(self, now: float) -> bool:
        """See `dynamo.router.queue.WorkerRoom`."""
        threshold = self._settings.router_queue_threshold
        if threshold is None:
            return True
        if self._kv is not None:
            self._kv.sweep(now)
        for candidate in self._ordered:
            candidate.forget_old_load(now)
            if candidate.has_room(threshold):
                return True
        return False

    def uncached_tokens(self, request: RouteRequest) -> int:
        """See `dynamo.router.queue.WorkerRoom`."""
        return self._kv.uncached_tokens(request) if self._kv is not None else request.prompt_tokens

    def report(self) -> dict[str, Any]:
        """What its decisions came to, for people and programs: see `RegretMeter` and `ShadowPolicies`."""
        report: dict[str, Any] = {"regret": self.regret.to_json()}
        if self.shadows is not None:
            report["shadows"] = self.shadows.to_json()
        return report

    def drain(self) -> None:
        """This process goes down: nobody waits here any more."""
        if self.queue is not None:
            self.queue.drain()

    async def close(self) -> None:
        """Stop what runs in the background."""
        if self.queue is not None:
            self.queue.close()
        if self._kv is not None:
            await self._kv.close()

    def _choose(self, request: RouteRequest, now: float) -> tuple[Choice, Sequence[Candidate]]:
        """The choice, and all that it could have been."""
        usable = self._usable(request, now)
        if self._kv is not None:
            self._kv.measure(request, usable, now)
        return self._policy.decide(request, usable), usable

    def _usable(self, request: RouteRequest, now: float) -> Sequence[Candidate]:
        able = self._policy.able(request, self._ordered)
        usable: Sequence[Candidate] = [c for c in able if c.breaker.closed or c.breaker.allows(now)]
        # With every circuit open a try costs nothing that waiting would save.
        usable = usable or able
        return self._not_busy(usable, request, now) if self._busy and usable else usable

    def _pending_ttft(self, request: RouteRequest, choice: Choice, now: float) -> PendingTtft:
        facts = [candidate.facts for candidate in choice.candidates]
        return self.regret.begin(facts, choice.candidates.index(choice.chosen), request.prompt_tokens, now)

    def _decision(self, request: RouteRequest, choice: Choice, pending: PendingTtft | None) -> Decision:
        claim = request.claim
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
            loads=[candidate.load for candidate in choice.candidates],
            ttft=pending,
            owner=request.tenant,
            queued_seconds=queue_wait.get(),
            claimed_by=claim.by if claim is not None and claim.worker == choice.chosen.key else "",
        )

    def _not_busy(self, usable: Sequence[Candidate], request: RouteRequest, now: float) -> list[Candidate]:
        for candidate in usable:
            candidate.forget_old_load(now)
        free = [candidate for candidate in usable if not candidate.busy(self._busy)]
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
