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
from dynamo.router.thresholds import BusyThresholds

__all__ = ["Candidate", "RemoteWork"]

#: Failures that lie with the worker, not with the request. A full or draining worker is well.
_WORKER_FAILURES = (TransportError, EngineShutdown, StreamIncomplete)
#: For workers whose card does not say; what engines default to.
_USUAL_BATCH_TOKENS = 8192
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

    def sent(self) -> int:
        """A request goes to this worker; :meth:`ended` must follow once, with what this returns."""
        self.active_requests += 1
        return self.breaker.sent()

    def ended(self, probe: int) -> None:
        """It is over, however."""
        self.active_requests -= 1
        self.breaker.ended(probe)

    def failed(self, error: DynamoError, now: float, probe: int = 0) -> None:
        """It failed."""
        if isinstance(error, _WORKER_FAILURES):
            self.breaker.failed(now, unreachable=isinstance(error, CannotConnect), probe=probe)

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

    def busy(self, thresholds: BusyThresholds) -> bool:
        """Whether the worker is beyond one of the thresholds; one that says nothing and was sent nothing is not."""
        return thresholds.exceeded(self.load, self.kv.active.prefill_tokens if self.kv is not None else 0)

    def waiting_prefill_tokens(self) -> int:
        """Prompt tokens that it was given and has not computed, as far as is known."""
        if self.kv is not None:
            return self.kv.active.prefill_tokens
        return self.load.active_prefill_tokens if self.load is not None else 0

    def has_room(self, batches: float) -> bool:
        """Whether at most so many of its batches would compute the prompts that it has."""
        card = self.record.card
        batch_tokens = (card.max_batched_tokens if card is not None else 0) or _USUAL_BATCH_TOKENS
        return self.waiting_prefill_tokens() <= batches * batch_tokens


class RemoteWork:
    """A request that another frontend has sent to a worker. All methods may be called more than once."""

    __slots__ = ("_booking", "_candidate")

    def __init__(self, candidate: Candidate, prefill_tokens: int, blocks: int, now: float) -> None:
        """It has `prefill_tokens` to compute, and `blocks` that no other request held when it was sent."""
        self._candidate: Candidate | None = candidate
        active = candidate.kv.active if candidate.kv is not None else None
        self._booking = active.book(prefill_tokens, [], now, unnamed_blocks=blocks) if active is not None else None
        candidate.active_requests += 1

    def prefill_done(self) -> None:
        """Its prompt is computed."""
        if self._booking is not None:
            self._booking.prefill_done()

    def end(self) -> None:
        """It is over, or its frontend is."""
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            candidate.active_requests -= 1
            if self._booking is not None:
                self._booking.end()
