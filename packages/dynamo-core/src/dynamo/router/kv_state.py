"""What the router knows of the caches and the work of one model's workers, and finds out for each request.

Owned by `CandidateTable` where the policy needs facts; a round-robin router has none and pays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.protocols.llm import DisaggregationMode
from dynamo.protocols.planes import RequestPlane
from dynamo.protocols.routing import RouteRequest
from dynamo.router.core.active_sequences import ActiveSequences, Booking
from dynamo.router.core.cost import WorkerFacts, uncached_tokens
from dynamo.router.core.routed_blocks import RoutedBlocks
from dynamo.router.core.tiered_index import NO_MATCH, TierMatch
from dynamo.router.indexer import KvIndexer
from dynamo.router.metrics import ModelRouterMetrics
from dynamo.router.settings import RouterSettings
from dynamo.router.slots import Slots

__all__ = ["KvState", "KvWorker"]

_SWEEP_SECONDS = 1.0
_DEFAULT_BLOCK_SIZE = 16


class KvWorker:
    """One worker's place in the index and its work."""

    __slots__ = ("active", "block_size", "recent_tokens", "routed", "slot")

    def __init__(self, slot: int, block_size: int, active: ActiveSequences, routed: RoutedBlocks | None) -> None:
        self.slot = slot
        self.block_size = block_size
        self.active = active
        self.routed = routed
        """What it is believed to hold; None where its events are followed."""
        self.recent_tokens = 0.0
        """Prompt tokens that it was given to compute, the older ones counting less."""


class MeasuredWorker(Protocol):
    """A candidate, as far as it is measured here."""

    facts: WorkerFacts
    active_requests: int
    kv: KvWorker | None


class KvState:
    """Caches and work of the workers of one model. `now` is any monotonic clock, in seconds."""

    def __init__(
        self, settings: RouterSettings, plane: RequestPlane | None, metrics: ModelRouterMetrics | None = None
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._slots = Slots()
        self._workers: dict[WorkerKey, KvWorker] = {}
        self._swept_at = 0.0
        count = metrics.kv_event if metrics is not None else lambda _outcome, _number: None
        self.indexer = KvIndexer(plane, max_blocks=settings.router_max_index_blocks, count=count)
        if metrics is not None:
            metrics.watch_index(self.indexer.blocks)

    def put(self, worker: WorkerKey, record: InstanceRecord) -> KvWorker:
        """A worker appeared, or has a new record."""
        card = record.card
        block_size = card.block_size_tokens if card is not None else _DEFAULT_BLOCK_SIZE
        known = self._workers.get(worker)
        if known is not None and known.block_size != block_size:
            self.remove(worker)
            known = None
        if known is None:
            known = self._workers[worker] = self._meet(worker, block_size, record)
        if known.routed is None:
            self.indexer.follow(worker, known.slot, block_size, record)
        return known

    def remove(self, worker: WorkerKey) -> None:
        """A worker is gone, with all that it held."""
        known = self._workers.pop(worker, None)
        if known is not None:
            self.indexer.forget(worker)
            self.indexer.index(known.block_size).clear(known.slot)
            self._slots.release(worker)

    def take_events(self, batch: KvEventBatch) -> None:
        """Events that a worker published."""
        self.indexer.take(batch)

    def measure(self, request: RouteRequest, candidates: Sequence[MeasuredWorker], now: float) -> None:
        """Set the `facts` of all candidates for `request`."""
        self.sweep(now)
        matches: dict[int, tuple[Sequence[int], TierMatch]] = {}
        size, match = 0, NO_MATCH
        hashes: Sequence[int] = ()
        overlap_of, blocks, tiered = match.device.get, 0, False
        for candidate in candidates:
            worker = candidate.kv
            assert worker is not None
            if worker.block_size != size:  # nearly never: the workers of a model are alike
                size = worker.block_size
                if size not in matches:
                    hashes = request.prompt.of(size) if request.prompt is not None else ()
                    matches[size] = (hashes, self.indexer.index(size).match(hashes))
                hashes, match = matches[size]
                overlap_of, blocks, tiered = match.device.get, len(hashes), match.host is not match.device
            active, slot = worker.active, worker.slot
            overlap = overlap_of(slot, 0)
            lower_tiers = None
            if tiered:
                with_host = match.host.get(slot, 0)
                lower_tiers = (with_host - overlap, match.disk.get(slot, 0) - with_host)
            candidate.facts = WorkerFacts(
                block_size=size,
                overlap_blocks=overlap,
                new_blocks=blocks - active.shared_blocks(hashes, overlap),
                active_prefill_tokens=active.prefill_tokens,
                active_decode_blocks=active.decode_blocks,
                active_requests=candidate.active_requests,
                lower_tiers=lower_tiers,
                recent_tokens=worker.recent_tokens,
            )

    def book(
        self, request: RouteRequest, chosen: MeasuredWorker, others: Sequence[MeasuredWorker], now: float
    ) -> Booking:
        """`request` goes to `chosen`, whose facts were measured for it."""
        worker, facts = chosen.kv, chosen.facts
        assert worker is not None
        size = worker.block_size
        hashes = request.prompt.of(size) if request.prompt is not None else ()
        if hashes and self._metrics is not None:
            best = max(other.facts.overlap_blocks for other in others)
            self._metrics.overlapped(facts, len(hashes), best)
        if worker.routed is not None and hashes:
            index = self.indexer.index(size)
            index.store(worker.slot, list(hashes))
            index.remove(worker.slot, worker.routed.use(hashes, now))
        # A decode worker is sent the KV of the prompt.
        decodes = request.mode is DisaggregationMode.DECODE
        uncached = 0 if decodes else uncached_tokens(facts, request.prompt_tokens)
        worker.recent_tokens += uncached
        return worker.active.book(uncached, hashes, now)

    def uncached_tokens(self, request: RouteRequest) -> int:
        """Prompt tokens that the worker which holds most of the prompt would compute."""
        if request.prompt is None:
            return request.prompt_tokens
        held = 0
        for size in {worker.block_size for worker in self._workers.values()}:
            match = self.indexer.index(size).match(request.prompt.of(size))
            held = max(held, size * max(match.device.values(), default=0))
        return max(0, request.prompt_tokens - held)

    async def close(self) -> None:
        """Stop what runs in the background."""
        await self.indexer.close()

    def _meet(self, worker: WorkerKey, block_size: int, record: InstanceRecord) -> KvWorker:
        settings, card = self._settings, record.card
        follows = settings.router_use_kv_events and card is not None and card.capabilities.kv_events
        capacity = card.total_kv_blocks if card is not None else 0
        return KvWorker(
            self._slots.take(worker),
            block_size,
            ActiveSequences(settings.router_active_request_lifetime_seconds),
            None if follows else RoutedBlocks(settings.router_ttl_seconds, capacity),
        )

    def sweep(self, now: float) -> None:
        """Forget what is too old, about once a second."""
        if now - self._swept_at < _SWEEP_SECONDS:
            return
        kept = math.exp((self._swept_at - now) / self._settings.router_recent_load_seconds)
        self._swept_at = now
        for worker in self._workers.values():
            worker.recent_tokens *= kept
            worker.active.expire(now)
            if worker.routed is not None and (old := worker.routed.expire(now)):
                self.indexer.index(worker.block_size).remove(worker.slot, old)
