"""Decides what each engine step computes: continuous batching with chunked prefill and preemption by recompute.

Every step, decoding sequences come first (one token each), so that a long prompt cannot stall streams; what is left of
the token budget goes to prompts in chunks, by priority and then arrival. When the pool runs dry, the last in that order
gives its blocks back and starts again later.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from dynamo.reference.block_pool import BlockPool, CachedBlock, block_hash
from dynamo.reference.sequence import Sequence

__all__ = ["Chunk", "Scheduler"]


@dataclasses.dataclass(slots=True)
class Chunk:
    """`count` tokens of one sequence, from its first token that is not computed."""

    sequence: Sequence
    count: int


class Scheduler:
    """Waiting and running sequences of one engine; belongs to the engine thread."""

    def __init__(self, pool: BlockPool, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.pool = pool
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._waiting: dict[Hashable, Sequence] = {}
        #: Heap by `Sequence.order`. A cancelled sequence leaves `_waiting` at once and the heap when it comes up.
        self._queue: list[tuple[int, int, Sequence]] = []
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens

    @property
    def waiting_count(self) -> int:
        """Sequences that are not admitted."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits the pool on its own."""
        self._waiting[sequence.key] = sequence
        heapq.heappush(self._queue, (*sequence.order, sequence))

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free its blocks."""
        if self._waiting.pop(sequence.key, None) is None:
            self.running.remove(sequence)
            self.pool.release(sequence.take_blocks())
        elif len(self._queue) > 2 * len(self._waiting) + 64:
            self._queue = [(*waiting.order, waiting) for waiting in self._waiting.values()]
            heapq.heapify(self._queue)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step; their blocks are allocated. Empty when there is nothing to do."""
        preemptions = self.preemptions
        self.running.sort(key=lambda sequence: sequence.order)
        chunks = self._schedule_decodes()
        budget = self._max_num_batched_tokens - len(chunks)
        scheduled = {chunk.sequence.key for chunk in chunks}
        for sequence in [s for s in self.running if s.remaining > 1]:
            if budget <= 0:
                break
            if sequence not in self.running:  # preempted by the one before
                continue
            count = min(sequence.remaining, budget)
            if self._reserve(sequence, count, keep=scheduled):
                chunks.append(Chunk(sequence, count))
                scheduled.add(sequence.key)
                budget -= count
        if self.preemptions == preemptions:
            chunks.extend(self._admit(budget))
        return chunks

    def advance(self, chunk: Chunk) -> None:
        """Note that a chunk was computed: its full blocks enter the prefix cache."""
        sequence = chunk.sequence
        first = sequence.computed // self.pool.block_size
        sequence.computed += chunk.count
        if not self.pool.enable_prefix_caching:
            return
        self._name_blocks(sequence, sequence.computed)
        for index in range(first, sequence.computed // self.pool.block_size):
            cached = CachedBlock(
                name=sequence.names[index],
                parent=sequence.names[index - 1] if index else None,
                token_ids=self._block_tokens(sequence, index).copy(),
                scope=sequence.scope,
            )
            sequence.blocks[index] = self.pool.publish(int(sequence.blocks[index]), cached)

    def _schedule_decodes(self) -> list[Chunk]:
        decoding = [sequence for sequence in self.running if sequence.remaining == 1]
        return [
            Chunk(sequence, 1)
            for sequence in decoding
            if sequence in self.running and self._reserve(sequence, 1, keep=None)  # not preempted by one before
        ]

    def _reserve(self, sequence: Sequence, count: int, keep: set[Hashable] | None) -> bool:
        """Allocate the blocks of the next `count` tokens, preempting later sequences as needed.

        `keep` are those that this step computes already. None: decodes are being scheduled, in order, so whoever is
        last cannot be among them, and may be `sequence` itself.
        """
        needed = -(-(sequence.computed + count) // self.pool.block_size) - sequence.block_count
        while (blocks := self.pool.allocate(needed)) is None:
            victim = self._victim(sequence, keep)
            if victim is None:
                return False
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.append_blocks(blocks)
        return True

    def _victim(self, sequence: Sequence, keep: set[Hashable] | None) -> Sequence | None:
        last = self.running[-1]
        if keep is None:
            return last
        later = [s for s in self.running if s.order > sequence.order and s.key not in keep]
        return later[-1] if later else None

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.take_blocks())
        sequence.preempted = True
        self.preemptions += 1
        self.add(sequence)

    def _admit(self, budget: int) -> list[Chunk]:
        """Start waiting sequences whose whole prompt fits the free blocks, in order; the first that does not, waits."""
        chunks: list[Chunk] = []
        promised = 0  # blocks that admitted prompts will need after their first chunk
        while budget > 0 and len(self.running) < self._max_num_seqs:
            sequence = self._next_waiting()
            if sequence is None:
                break
            self._reuse_prefix(sequence)
            missing = -(-sequence.length // self.pool.block_size) - sequence.block_count
            if missing + promised > self.pool.available:
                self.pool.release(sequence.take_blocks())
                break
            heapq.heappop(self._queue)
            del self._waiting[sequence.key]
            if not sequence.preempted:
                sequence.cached_tokens = sequence.computed
            count = min(sequence.remaining, budget)
            before = sequence.block_count
            if not self._reserve(sequence, count, keep=set()):
                message = "blocks that were available cannot be allocated"
                raise RuntimeError(message)
            promised += missing - (sequence.block_count - before)
            self.running.append(sequence)
            chunks.append(Chunk(sequence, count))
            budget -= count
        return chunks

    def _next_waiting(self) -> Sequence | None:
        while self._queue:
            sequence = self._queue[0][2]
            if self._waiting.get(sequence.key) is sequence:
                return sequence
            heapq.heappop(self._queue)
        return None

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Take cached blocks, leaving at least the last token to compute: its logits are needed."""
        if not self.pool.enable_prefix_caching or sequence.needs_whole_prompt:
            return
        self._name_blocks(sequence, sequence.length - 1)
        blocks = self.pool.match(sequence.names[: (sequence.length - 1) // self.pool.block_size])
        sequence.append_blocks(blocks)
        sequence.computed = len(blocks) * self.pool.block_size

    def _name_blocks(self, sequence: Sequence, tokens: int) -> None:
        for index in range(len(sequence.names), tokens // self.pool.block_size):
            parent = sequence.names[index - 1] if index else sequence.scope.root()
            sequence.names.append(block_hash(parent, self._block_tokens(sequence, index)))

    def _block_tokens(self, sequence: Sequence, index: int) -> npt.NDArray[np.int32]:
        size = self.pool.block_size
        return sequence.tokens(index * size, (index + 1) * size)
