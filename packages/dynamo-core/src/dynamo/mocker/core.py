"""Continuous batching of one simulated rank, as a pure function of time: add, abort, `step(now)`.

Every step, decoding sequences come first, one token each; what is left of the token budget goes to prompts in chunks,
by priority and then arrival. A prompt is admitted when its blocks fit; when decoding runs out of blocks, the last in
order gives all of its own back and is computed again later. Driven by `dynamo.mocker.rank` and by `dynamo.replay`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

from dynamo.mocker.block_pool import BlockPool
from dynamo.mocker.perf_model import PerfModel
from dynamo.mocker.sequence import Sequence, SequenceState
from dynamo.protocols.load import EngineLoad

__all__ = ["BlocksRemoved", "BlocksStored", "CoreEvent", "CoreLimits", "EngineCore", "StepResult"]


class BlocksStored(NamedTuple):
    """Blocks ``[start, stop)`` of a sequence entered the prefix cache."""

    sequence: Sequence
    start: int
    stop: int


class BlocksRemoved(NamedTuple):
    """Blocks left the prefix cache."""

    names: list[int]


CoreEvent = BlocksStored | BlocksRemoved


@dataclass(frozen=True)
class CoreLimits:
    """What one rank can hold and do in a step."""

    total_blocks: int = 16_384
    block_size: int = 64
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    """Bounds the decoding sequences as well as the prompt tokens of a step."""
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    """Without it a prompt is computed in one step, and must fit `max_num_batched_tokens`."""
    transfer_seconds_per_token: float = 0.0
    """Time that the KV of one prompt token takes to arrive from a prefill worker."""


class StepResult(NamedTuple):
    """What a step does; its outputs and events become visible `duration_seconds` after it began."""

    duration_seconds: float
    outputs: list[Sequence]
    """Sequences that get one token each; those that end with it are in the state ENDED."""
    events: list[CoreEvent]
    wait_until: float | None = None
    """Nothing can be computed before this time (None: before something is added)."""


class EngineCore:
    """One rank. `now` is any clock that does not go back, in seconds."""

    def __init__(self, limits: CoreLimits, perf_model: PerfModel) -> None:
        self.pool = BlockPool(limits.total_blocks)
        self.preemptions = 0
        self.caching_paused = False
        """While set, computed blocks enter the prefix cache not now but later, if their sequence still runs."""
        self._limits = limits
        self._perf_model = perf_model
        self._max_running = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        """Heap by order; an aborted sequence stays until it comes up."""
        self._waiting_count = 0
        self._transferring: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._decode_context = 0
        """Tokens in the contexts of all decoding sequences."""
        self._arrivals = 0
        self._events: list[CoreEvent] = []

    @property
    def has_work(self) -> bool:
        """Whether anything is waiting or running."""
        return bool(self._waiting_count or self._decoding or self._prefilling or self._transferring)

    @property
    def request_count(self) -> int:
        """Sequences that wait or run."""
        return self._waiting_count + self._running_count

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence.

        Raises:
            ValueError: it can never be computed within the limits.
        """
        limits = self._limits
        blocks = -(-(sequence.prompt_tokens + sequence.output_tokens - 1) // limits.block_size)
        if sequence.prompt_tokens < 1 or sequence.output_tokens < 1 or blocks > limits.total_blocks:
            raise ValueError(
                f"{sequence.prompt_tokens} prompt and {sequence.output_tokens} output tokens need {blocks} blocks "
                f"of {limits.total_blocks}"
            )
        longest = sequence.prompt_tokens + sequence.output_tokens - 1  # after a preemption the output counts too
        if not limits.enable_chunked_prefill and longest > limits.max_num_batched_tokens:
            raise ValueError(f"a prompt of up to {longest} tokens needs a larger budget, or chunked prefill")
        self._arrivals += 1
        sequence.order = (sequence.priority, self._arrivals)
        self._queue(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks; one that has ended is ignored."""
        if sequence.state is SequenceState.WAITING:
            self._waiting_count -= 1
            self._compact_waiting()
        elif sequence.state is not SequenceState.ENDED:
            self._leave(sequence)
        sequence.state = SequenceState.ENDED

    def step(self, now: float) -> StepResult:
        """Compute the batch that `now` allows. A result without outputs may still have taken time (a prefill chunk)."""
        limits = self._limits
        if self._transferring:
            self._take_arrived(now)
        self._make_room_for_decodes()
        decodes = self._decoding.copy()
        chunks = self._schedule_chunks(limits.max_num_batched_tokens - len(decodes), now)
        if not decodes and not chunks:
            wait = min((sequence.ready_time for sequence in self._transferring), default=None)
            return StepResult(0.0, [], self._take_events(), wait)
        prefill_tokens, contexts = 0, 0.0
        for sequence, count in chunks:
            prefill_tokens += count
            contexts += count * (sequence.computed + (count - 1) / 2)
        duration = self._perf_model.step_seconds(prefill_tokens, contexts, len(decodes), self._decode_context)
        for sequence in decodes:
            self._advance_decode(sequence)
        outputs = decodes
        for sequence, count in chunks:
            if self._advance_chunk(sequence, count):
                outputs.append(sequence)
        return StepResult(duration, outputs, self._take_events())

    def load(self, dp_rank: int = 0) -> EngineLoad:
        """Load at this moment."""
        return EngineLoad(
            dp_rank=dp_rank,
            waiting_requests=self._waiting_count,
            running_requests=self._running_count,
            preempted_requests=self.preemptions,
            used_kv_blocks=self.pool.used,
            cached_kv_blocks=self.pool.cached,
            total_kv_blocks=self.pool.total,
            active_prefill_tokens=sum(sequence.remaining for sequence in self._prefilling),
            active_decode_blocks=sum(sequence.blocks for sequence in self._decoding),
        )

    @property
    def _running_count(self) -> int:
        return len(self._decoding) + len(self._prefilling) + len(self._transferring)

    def _queue(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.WAITING
        self._waiting_count += 1
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def _compact_waiting(self) -> None:
        """Drop aborted sequences once they are most of the heap."""
        if len(self._waiting) > 2 * self._waiting_count + 64:
            self._waiting = [entry for entry in self._waiting if entry[1].state is SequenceState.WAITING]
            heapq.heapify(self._waiting)

    def _take_arrived(self, now: float) -> None:
        """Sequences whose KV has arrived have one token left to compute."""
        for sequence in [s for s in self._transferring if s.ready_time <= now]:
            self._transferring.remove(sequence)
            sequence.state = SequenceState.PREFILLING
            sequence.computed = sequence.known - 1
            self._publish(sequence)
            self._prefilling.append(sequence)

    def _make_room_for_decodes(self) -> None:
        """Give each decoding sequence the block that its next token goes to, preempting the last in order."""
        size = self._limits.block_size
        for sequence in [s for s in self._decoding if s.computed == s.blocks * size]:
            while sequence.state is SequenceState.DECODING and not self.pool.fits((), 1):
                self._preempt(self._last_running())
            if sequence.state is SequenceState.DECODING:
                self._allocate(sequence, (), 1)

    def _last_running(self) -> Sequence:
        return max((*self._decoding, *self._prefilling, *self._transferring), key=lambda sequence: sequence.order)

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.preemptions += 1
        self._queue(sequence)

    def _schedule_chunks(self, budget: int, now: float) -> list[tuple[Sequence, int]]:
        """The prompt chunks of this step: of prompts that have begun, then of new ones."""
        chunks: list[tuple[Sequence, int]] = []
        preemptions = self.preemptions
        self._prefilling.sort(key=lambda sequence: sequence.order)
        for sequence in self._prefilling:
            count = min(sequence.remaining, budget)
            if count:
                chunks.append((sequence, count))
                budget -= count
        # What was just preempted would only take its blocks back.
        while budget > 0 and self._waiting_count and preemptions == self.preemptions:
            sequence = self._next_waiting()
            if not self._admit(sequence, budget, now):
                break
            if sequence.state is SequenceState.PREFILLING:
                count = min(sequence.remaining, budget)
                chunks.append((sequence, count))
                budget -= count
        return chunks

    def _next_waiting(self) -> Sequence:
        while self._waiting[0][1].state is not SequenceState.WAITING:
            heapq.heappop(self._waiting)
        return self._waiting[0][1]

    def _admit(self, sequence: Sequence, budget: int, now: float) -> bool:
        """Start `sequence`, which is the first that waits, if a sequence more is allowed and its blocks fit."""
        limits = self._limits
        if self._running_count >= self._max_running:
            return False
        # The last token is always computed: its logits are needed.
        reusable = sequence.names[: (sequence.known - 1) // limits.block_size]
        hits = self.pool.match(reusable) if limits.enable_prefix_caching else 0
        cached_tokens = hits * limits.block_size
        if not limits.enable_chunked_prefill and sequence.known - cached_tokens > budget:
            return False
        missing = -(-sequence.known // limits.block_size) - hits
        shared = sequence.names[:hits]
        if not self.pool.fits(shared, missing):
            return False
        heapq.heappop(self._waiting)
        self._waiting_count -= 1
        sequence.shared = hits
        self._allocate(sequence, shared, missing)
        sequence.computed = cached_tokens
        if not sequence.preemptions:
            sequence.cached_tokens = cached_tokens
        if sequence.transferred and not sequence.preemptions:
            sequence.state = SequenceState.TRANSFERRING
            sequence.ready_time = now + (sequence.remaining - 1) * limits.transfer_seconds_per_token
            self._transferring.append(sequence)
        else:
            sequence.state = SequenceState.PREFILLING
            self._prefilling.append(sequence)
        return True

    def _allocate(self, sequence: Sequence, shared: Items[int], private: int) -> None:
        evicted = self.pool.acquire(shared, private)
        sequence.blocks += len(shared) + private
        if evicted:
            self._events.append(BlocksRemoved(evicted))

    def _advance_decode(self, sequence: Sequence) -> None:
        sequence.computed += 1
        sequence.known += 1
        sequence.generated += 1
        self._decode_context += 1
        if sequence.computed % self._limits.block_size == 0:
            self._publish(sequence)
        if sequence.generated == sequence.output_tokens:
            self._finish(sequence)

    def _advance_chunk(self, sequence: Sequence, count: int) -> bool:
        """Note that a chunk was computed; whether the sequence got a token by it."""
        sequence.computed += count
        self._publish(sequence)
        if sequence.remaining:
            return False
        sequence.known += 1
        sequence.generated += 1
        if sequence.generated == sequence.output_tokens:
            self._finish(sequence)
        else:
            self._prefilling.remove(sequence)
            self._decoding.append(sequence)
            self._decode_context += sequence.known
            sequence.state = SequenceState.DECODING
        return True

    def _publish(self, sequence: Sequence) -> None:
        """Enter the full blocks that have names into the prefix cache."""
        limits = self._limits
        stop = min(sequence.computed // limits.block_size, len(sequence.names))
        if stop <= sequence.shared or not limits.enable_prefix_caching or self.caching_paused:
            return
        first = sequence.shared  # of the run of new blocks
        for index in range(sequence.shared, stop):
            if not self.pool.publish(sequence.names[index]):
                if first < index:
                    self._events.append(BlocksStored(sequence, first, index))
                first = index + 1
        if first < stop:
            self._events.append(BlocksStored(sequence, first, stop))
        sequence.shared = stop

    def _finish(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.state = SequenceState.ENDED

    def _leave(self, sequence: Sequence) -> None:
        """Take a running sequence out and free its blocks."""
        if sequence.state is SequenceState.DECODING:
            self._decoding.remove(sequence)
            self._decode_context -= sequence.known
        elif sequence.state is SequenceState.PREFILLING:
            self._prefilling.remove(sequence)
        else:
            self._transferring.remove(sequence)
        self.pool.release(sequence.names[: sequence.shared], sequence.blocks - sequence.shared)
        sequence.blocks = sequence.shared = 0

    def _take_events(self) -> list[CoreEvent]:
        events, self._events = self._events, []
        return events
