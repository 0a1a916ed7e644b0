"""Properties of the scheduler over random lives: nothing leaks, budgets hold, the cache equals a brute-force model."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.mocker.core import BlocksRemoved, CoreLimits, EngineCore
from dynamo.mocker.perf_model import PerfModel
from dynamo.mocker.sequence import Sequence, SequenceState

_BLOCK = 4


@dataclass(frozen=True)
class _Budgeted(PerfModel):
    """Looks at what each step computes."""

    budget: int = 0

    def step_seconds(self, prefill_tokens, prefill_token_contexts, decode_requests, decode_context_tokens) -> float:
        assert 0 < prefill_tokens + decode_requests <= self.budget
        assert decode_context_tokens >= decode_requests
        return super().step_seconds(prefill_tokens, prefill_token_contexts, decode_requests, decode_context_tokens)


@dataclass
class _Life:
    """One core under random requests, with a mirror of its cache built from events alone."""

    core: EngineCore
    limits: CoreLimits
    random: random.Random
    sequences: list[Sequence] = field(default_factory=list)
    cached: set[int] = field(default_factory=set)
    parents: dict[int, int | None] = field(default_factory=dict)
    log: list = field(default_factory=list)

    def add(self) -> None:
        prompt = self.random.randrange(1, 40)
        output = self.random.randrange(1, 20)
        names: list[int] = []
        # Few branches, so that prefixes are shared; a name stands for the whole path to it.
        for _ in range((prompt + output) // _BLOCK):
            names.append(hash((names[-1] if names else None, self.random.randrange(2))))
        named = names[: self.random.randrange(len(names) + 1)]
        sequence = Sequence(None, prompt, output, named, priority=self.random.randrange(2))
        self.core.add(sequence)
        self.sequences.append(sequence)

    def step(self) -> None:
        known = {sequence: sequence.known for sequence in self.sequences}
        result = self.core.step(0.0)
        drawing = [sequence for sequence in self.sequences if sequence.known > known[sequence]]
        assert sorted(map(id, drawing)) == sorted(map(id, result.outputs))
        assert all(sequence.known == known[sequence] + 1 for sequence in drawing)
        self.log.append((result.duration_seconds, [s.order for s in result.outputs], len(result.events)))
        for event in result.events:
            if isinstance(event, BlocksRemoved):
                for name in event.names:
                    self.cached.remove(name)
            else:
                names = event.sequence.names
                for index in range(event.start, event.stop):
                    assert names[index] not in self.cached
                    self.cached.add(names[index])
                    self.parents[names[index]] = names[index - 1] if index else None

    def check(self) -> None:
        pool = self.core.pool
        held = [s for s in self.sequences if s.running]
        shared = {name for s in held for name in s.names[: s.shared]}
        private = sum(s.blocks - s.shared for s in held)
        assert pool.used == len(shared) + private
        assert pool.used + pool.cached <= self.limits.total_blocks
        assert pool.used + pool.cached - private == len(self.cached)
        assert len(held) <= self.limits.max_num_seqs
        for name in self.cached:  # leaves go first: what is cached has its whole prefix
            assert self.parents[name] is None or self.parents[name] in self.cached
        for sequence in held:
            assert sequence.blocks * _BLOCK >= sequence.computed


def _live(seed: int, *, actions: int = 150) -> _Life:
    randomness = random.Random(seed)
    limits = CoreLimits(
        total_blocks=randomness.randrange(15, 40),
        block_size=_BLOCK,
        max_num_seqs=randomness.randrange(1, 8),
        max_num_batched_tokens=randomness.randrange(8, 32),
    )
    life = _Life(EngineCore(limits, _Budgeted(budget=limits.max_num_batched_tokens)), limits, randomness)
    for _ in range(actions):
        action = randomness.random()
        if action < 0.3:
            life.add()
        elif action < 0.4 and life.sequences:
            life.core.abort(randomness.choice(life.sequences))
        else:
            life.step()
        life.check()
    return life


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_nothing_leaks_and_everybody_is_served(seed: int) -> None:
    life = _live(seed)
    aborted = {s for s in life.sequences if s.state is SequenceState.ENDED and s.generated < s.output_tokens}
    for _ in range(20_000):
        if not life.core.has_work:
            break
        life.step()
    life.check()
    assert life.core.pool.used == 0
    for sequence in life.sequences:
        assert sequence.state is SequenceState.ENDED
        assert sequence in aborted or sequence.generated == sequence.output_tokens


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_equal_lives_are_equal(seed: int) -> None:
    assert _live(seed).log == _live(seed).log


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_reuse_equals_a_brute_force_search(seed: int) -> None:
    life = _live(seed)
    while life.core.has_work:
        life.step()
    for number in range(5):
        life.add()
        sequence = life.sequences[-1]
        reusable = sequence.names[: (sequence.prompt_tokens - 1) // _BLOCK]
        expected = next((i for i, name in enumerate(reusable) if name not in life.cached), len(reusable))
        while life.core.has_work:
            life.step()
        assert sequence.cached_tokens == expected * _BLOCK, number
