"""One worker that may take a request: what this router has sent it, and what it says of itself."""

from __future__ import annotations

from dynamo.errors import CannotConnect, DynamoError, EngineShutdown, StreamIncomplete, TransportError
from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.load import EngineLoad
from dynamo.router.breaker import CircuitBreaker
from dynamo.router.core.active_sequences import REPORT_LIFETIME_SECONDS
from dynamo.router.core.cost import WorkerFacts
from dynamo.router.kv_state import KvWorker
from dynamo.router.settings import RouterSettings

__all__ = ["Candidate"]

#: Failures that lie with the worker, not with the request. A full or draining worker is well.
_WORKER_FAILURES = (TransportError, EngineShutdown, StreamIncomplete)
_NOTHING_KNOWN = WorkerFacts(1)


class Candidate:
    """One data-parallel rank of one instance; implements `dynamo.protocols.routing.CandidateView`."""

    __slots__ = ("_load_time", "active_requests", "breaker", "facts", "key", "kv", "load", "record")

    def __init__(self, key: WorkerKey, record: InstanceRecord) -> None:
        self.key = key
        self.record = record
        self.active_requests = 0
        self.breaker = CircuitBreaker()
        self.load: EngineLoad | None = None
        self._load_time = 0.0
        self.kv: KvWorker | None = None
        """Its cache and its work, where the policy needs to know them."""
        self.facts = _NOTHING_KNOWN
        """For the request that is being decided."""

    @property
    def overlap_blocks(self) -> int:
        """See `CandidateView`."""
        return self.facts.overlap_blocks

    @property
    def active_prefill_tokens(self) -> int:
        """See `CandidateView`."""
        return self.facts.active_prefill_tokens

    @property
    def active_decode_blocks(self) -> int:
        """See `CandidateView`."""
        return self.facts.active_decode_blocks

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
        if self.kv is not None:
            self.kv.active.correct(load.active_prefill_tokens, load.active_decode_blocks, now)

    def forget_old_load(self, now: float) -> None:
        """Drop what was said too long ago."""
        if self.load is not None and now - self._load_time > REPORT_LIFETIME_SECONDS:
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
