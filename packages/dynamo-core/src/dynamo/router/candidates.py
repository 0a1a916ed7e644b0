"""The workers of one model that may take a request: what this router has sent them, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable

from dynamo.errors import CannotConnect, DynamoError, EngineShutdown, Overloaded, StreamIncomplete, TransportError
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.load import EngineLoad, WorkerLoad
from dynamo.protocols.routing import RouteRequest
from dynamo.router.breaker import CircuitBreaker
from dynamo.router.policy import RouterPolicy
from dynamo.router.settings import RouterSettings

__all__ = ["LOAD_LIFETIME_SECONDS", "Candidate", "CandidateTable"]

#: What a worker said of its load longer ago than this is not used; workers repeat theirs every 5 s.
LOAD_LIFETIME_SECONDS = 15.0
#: Failures that lie with the worker, not with the request. A full or draining worker is well.
_WORKER_FAILURES = (TransportError, EngineShutdown, StreamIncomplete)


class Candidate:
    """One data-parallel rank of one instance; implements `dynamo.protocols.routing.CandidateView`."""

    __slots__ = ("_load_time", "active_requests", "breaker", "key", "load", "record")

    def __init__(self, key: WorkerKey, record: InstanceRecord) -> None:
        self.key = key
        self.record = record
        self.active_requests = 0
        self.breaker = CircuitBreaker()
        self.load: EngineLoad | None = None
        self._load_time = 0.0

    def sent(self) -> None:
        """A request goes to this worker; :meth:`ended` must follow once."""
        self.active_requests += 1
        self.breaker.sent()

    def ended(self) -> None:
        """It is over, however."""
        self.active_requests -= 1
        self.breaker.ended()

    def failed(self, error: DynamoError, now: float) -> None:
        """It failed."""
        if isinstance(error, _WORKER_FAILURES):
            self.breaker.failed(now, unreachable=isinstance(error, CannotConnect))

    def set_load(self, load: EngineLoad, now: float) -> None:
        """The worker said this of itself."""
        self.load = load
        self._load_time = now

    def forget_old_load(self, now: float) -> None:
        """Drop what was said too long ago."""
        if self.load is not None and now - self._load_time > LOAD_LIFETIME_SECONDS:
            self.load = None

    def busy(self, settings: RouterSettings) -> bool:
        """Whether the worker is beyond one of the thresholds; one that says nothing is not."""
        load = self.load
        if load is None:
            return False
        prefill, blocks = settings.active_prefill_tokens_threshold, settings.active_decode_blocks_threshold
        if prefill is not None and load.active_prefill_tokens > prefill:
            return True
        return blocks is not None and load.used_kv_blocks > blocks * load.total_kv_blocks > 0


class CandidateTable:
    """Candidates by routing key, and the policy that chooses among them. `now` is any monotonic clock, in seconds."""

    def __init__(self, policy: RouterPolicy, settings: RouterSettings | None = None) -> None:
        self._policy = policy
        self._settings = settings or RouterSettings()
        self._watches_load = (
            self._settings.active_prefill_tokens_threshold is not None
            or self._settings.active_decode_blocks_threshold is not None
        )
        self._candidates: dict[WorkerKey, Candidate] = {}
        self._ordered: list[Candidate] = []

    def __len__(self) -> int:
        return len(self._ordered)

    def put(self, record: InstanceRecord) -> None:
        """Add an instance, or take over its new record; requests in flight stay counted."""
        ranks = max(1, record.card.dp_size) if record.card is not None else 1
        self._keep(lambda key: key.instance_id != record.id or key.dp_rank < ranks)
        for rank in range(ranks):
            key = WorkerKey(record.id, rank)
            known = self._candidates.get(key)
            if known is None:
                self._candidates[key] = Candidate(key, record)
            else:
                known.record = record
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

    def select(self, request: RouteRequest, now: float) -> Candidate:
        """The candidate for `request`; the caller calls its `sent`, and at the end `ended`.

        Raises:
            NoInstances: there is none.
            Overloaded: all are beyond a threshold.
        """
        usable = [candidate for candidate in self._ordered if candidate.breaker.allows(now)]
        # With every circuit open a try costs nothing that waiting would save.
        usable = usable or self._ordered
        if self._watches_load and usable:
            usable = self._not_busy(usable, request, now)
        chosen = self._policy.select(request, usable)
        return self._candidates[chosen.key]

    def _not_busy(self, usable: list[Candidate], request: RouteRequest, now: float) -> list[Candidate]:
        for candidate in usable:
            candidate.forget_old_load(now)
        free = [candidate for candidate in usable if not candidate.busy(self._settings)]
        if not free:
            raise Overloaded(f"all workers of {request.model!r} are busy", retry_after_seconds=1)
        return free

    def _keep(self, wanted: Callable[[WorkerKey], bool]) -> None:
        self._candidates = {key: candidate for key, candidate in self._candidates.items() if wanted(key)}

    def _order(self) -> None:
        self._ordered = [self._candidates[key] for key in sorted(self._candidates)]
