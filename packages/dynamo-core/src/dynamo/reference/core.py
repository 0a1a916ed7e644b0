"""The engine without threads or event loops: add, abort, step. Driven by `dynamo.reference.engine_thread`."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Hashable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dynamo.errors import DynamoError, EngineError
from dynamo.protocols.kv_events import EngineKvEvent
from dynamo.protocols.llm import FinishReason, LLMEngineOutput, PreprocessedRequest, Usage
from dynamo.protocols.load import EngineLoad
from dynamo.reference.batch import build_batch
from dynamo.reference.block_pool import BlockPool
from dynamo.reference.kv_cache import KvCache
from dynamo.reference.lora import LoraAdapter
from dynamo.reference.model import ForwardModel
from dynamo.reference.sampling import Guide, SampledToken, Sampler, sample_tokens, token_logprob
from dynamo.reference.scheduler import Chunk, Scheduler
from dynamo.reference.sequence import Sequence

__all__ = ["EngineCore", "StepResult", "StreamItem", "StreamKey"]

#: What a stream gets: an output, or the error that ends it.
StreamItem: TypeAlias = "LLMEngineOutput | DynamoError"
#: Names one stream for ever. Request ids do not: a client may use one again while the old stream is being aborted.
StreamKey: TypeAlias = Hashable


@dataclasses.dataclass(slots=True)
class StepResult:
    """All that one step (or one abort) has to tell."""

    items: list[tuple[StreamKey, StreamItem]]
    """What each stream gets."""
    events: list[EngineKvEvent]
    load: EngineLoad


class EngineCore:
    """Runs validated requests (`dynamo.reference.admission`) on one model; belongs to one thread."""

    def __init__(
        self,
        model: ForwardModel,
        cache: KvCache,
        *,
        max_model_len: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos_token_ids: tuple[int, ...] = (),
        enable_prefix_caching: bool = True,
        seed: int | None = None,
    ) -> None:
        self.pool = BlockPool(cache.num_blocks, cache.block_size, enable_prefix_caching=enable_prefix_caching)
        self.cache = cache
        self.step_number = 0
        self._model = model
        self._scheduler = Scheduler(self.pool, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
        self._max_model_len = max_model_len
        self._eos_token_ids = frozenset(eos_token_ids)
        self._random = random.Random(seed)
        self._sequences: dict[StreamKey, Sequence] = {}
        self._deadlines: dict[StreamKey, float] = {}
        self._arrivals = 0
        self._items: list[tuple[StreamKey, StreamItem]] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something."""
        return bool(self._sequences)

    def add(
        self,
        key: StreamKey,
        request: PreprocessedRequest,
        *,
        adapter: LoraAdapter | None = None,
        guide: Guide | None = None,
    ) -> None:
        """Queue a request; `guide` has accepted the output of an earlier worker already."""
        prompt_length = len(request.token_ids) // 4
        budget = self._max_model_len - prompt_length
        max_tokens = min(request.stop.max_tokens or budget, budget)
        stop_ids = frozenset(request.stop.stop_token_ids)
        if not request.stop.ignore_eos:
            stop_ids |= self._eos_token_ids
        prompt = request.prompt().astype(np.int32)
        self._arrivals += 1
        sequence = Sequence(
            key,
            request,
            arrival=self._arrivals,
            max_length=prompt_length + max_tokens,
            block_size=self.cache.block_size,
            sampler=Sampler(
                request.sampling,
                seed=self._random.getrandbits(64),
                prompt_ids=prompt[: prompt_length - request.prior_output_tokens],
                stop_ids=sorted(stop_ids),
                min_tokens=request.stop.min_tokens,
                guide=guide,
            ),
            stop_ids=stop_ids,
            adapter=adapter,
        )
        self._sequences[key] = sequence
        if request.deadline_unix_seconds is not None:
            self._deadlines[key] = request.deadline_unix_seconds
        self._scheduler.add(sequence)

    def abort(self, key: StreamKey) -> None:
        """End a stream as cancelled and free its blocks; unknown keys are ignored."""
        sequence = self._sequences.get(key)
        if sequence is not None:
            self._end(sequence, LLMEngineOutput(), "cancelled")

    def step(self, now: float) -> None:
        """Compute one batch; `now` is Unix time. What came of it is in `take_result`.

        Requests beyond their deadline end as cancelled: their answer is of no use any more.
        """
        for key in [key for key, deadline in self._deadlines.items() if deadline <= now]:
            self.abort(key)
        chunks = self._scheduler.schedule()
        if not chunks:
            return
        self.step_number += 1
        hidden = self._model.forward(build_batch(chunks, self.cache.block_size), self.cache)
        drawing, rows = self._advance(chunks, hidden)
        if drawing:
            self._draw(drawing, self._model.logits(hidden[rows]))

    def take_result(self) -> StepResult:
        """Outputs and events since the last call, and the load now."""
        items, self._items = self._items, []
        return StepResult(items, self.pool.take_events(), self.load())

    def load(self) -> EngineLoad:
        """Load at this moment."""
        running = self._scheduler.running
        return EngineLoad(
            waiting_requests=self._scheduler.waiting_count,
            running_requests=len(running),
            preempted_requests=self._scheduler.preemptions,
            used_kv_blocks=self.pool.used,
            cached_kv_blocks=self.pool.evictable,
            total_kv_blocks=self.pool.num_blocks,
            active_prefill_tokens=sum(s.remaining for s in running if s.remaining > 1),
            active_decode_blocks=sum(s.block_count for s in running if s.remaining <= 1),
        )

    def _advance(self, chunks: list[Chunk], hidden: npt.NDArray[np.float32]) -> tuple[list[Sequence], list[int]]:
        """Note what was computed; the sequences that draw a token now, and their rows of `hidden`."""
        drawing: list[Sequence] = []
        rows: list[int] = []
        row = 0
        for chunk in chunks:
            sequence, start, whole = chunk.sequence, chunk.sequence.computed, chunk.sequence.needs_whole_prompt
            self._scheduler.advance(chunk)
            complete = sequence.remaining == 0
            if whole:
                self._collect_prompt(sequence, start, hidden[row : row + chunk.count])
                row += chunk.count
            elif complete:
                row += 1
            if complete and sequence.request.embed:
                self._finish_embedding(sequence)
            elif complete:
                drawing.append(sequence)
                rows.append(row - 1)
        return drawing, rows

    def _collect_prompt(self, sequence: Sequence, start: int, hidden: npt.NDArray[np.float32]) -> None:
        """Use the hidden states of prompt positions from `start` on; 0 starts afresh (after preemption too)."""
        if sequence.request.embed:
            total = hidden.sum(axis=0, dtype=np.float64)
            first = start == 0 or sequence.embedding_sum is None
            sequence.embedding_sum = total if first else sequence.embedding_sum + total
            return
        if start == 0 or sequence.prompt_logprobs is None:
            sequence.prompt_logprobs = [None]
        top = sequence.request.sampling.prompt_logprobs or 0
        followers = sequence.tokens(start + 1, min(start + 1 + len(hidden), sequence.prompt_length))
        logits = self._model.logits(hidden[: len(followers)])
        sequence.prompt_logprobs.extend(
            token_logprob(row, token, top) for row, token in zip(logits, followers.tolist(), strict=True)
        )

    def _finish_embedding(self, sequence: Sequence) -> None:
        mean = np.asarray(sequence.embedding_sum, np.float64) / sequence.prompt_length
        self._end(sequence, LLMEngineOutput(embedding=mean.astype("<f4").tobytes()), "stop")

    def _draw(self, sequences: list[Sequence], logits: npt.NDArray[np.float32]) -> None:
        samplers = [sequence.sampler for sequence in sequences]
        sampled = sample_tokens(samplers, logits, [sequence.output_ids() for sequence in sequences])
        for sequence, token in zip(sequences, sampled, strict=True):
            if token.error is not None:
                self._fail(sequence, token.error)
            else:
                self._emit(sequence, token)

    def _emit(self, sequence: Sequence, sampled: SampledToken) -> None:
        """Add a drawn token to its stream, and end the stream where that token says so."""
        output = LLMEngineOutput(step=self.step_number)
        if sequence.prompt_logprobs is not None:
            output.prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        if sampled.token_id in sequence.stop_ids:
            if sampled.token_id not in self._eos_token_ids:
                output.stop_reason = sampled.token_id
            self._end(sequence, output, "stop")
            return
        sequence.append_token(sampled.token_id)
        output.token_ids = [sampled.token_id]
        if sampled.logprob is not None:
            output.logprobs = [sampled.logprob]
        guide = sequence.sampler.guide
        if guide is not None:
            guide.accept(sampled.token_id)
        if guide is not None and guide.finished:
            self._end(sequence, output, "stop")
        elif sequence.length == sequence.max_length:
            self._end(sequence, output, "length")
        else:
            self._items.append((sequence.key, output))

    def _end(self, sequence: Sequence, output: LLMEngineOutput, reason: FinishReason) -> None:
        output.finish_reason = reason
        output.step = self.step_number
        # what another worker generated is neither the client's prompt nor new: that worker has counted it
        prompt_tokens = sequence.prompt_length - sequence.request.prior_output_tokens
        output.usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=sequence.new_tokens,
            cached_tokens=min(sequence.cached_tokens, prompt_tokens),
        )
        self._forget(sequence)
        self._items.append((sequence.key, output))

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        self._forget(sequence)
        self._items.append((sequence.key, error))

    def _forget(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        del self._sequences[sequence.key]
        self._deadlines.pop(sequence.key, None)
