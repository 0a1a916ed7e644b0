from __future__ import annotations

import numpy as np
import pytest

from dynamo.reference.block_pool import BlockPool
from dynamo.reference.sampling import Sampler
from dynamo.reference.scheduler import Scheduler
from dynamo.reference.sequence import Sequence

BLOCK = 4


@pytest.fixture
def sequence(make_request):
    """A sequence of a given prompt length; arrival grows."""
    arrivals = iter(range(100))

    def make(key, length, *, priority=0, first=1, max_new=20) -> Sequence:
        request = make_request([first, *range(2, length + 1)], priority=priority)
        return Sequence(
            key,
            request,
            arrival=next(arrivals),
            max_length=length + max_new,
            block_size=BLOCK,
            sampler=Sampler(request.sampling, seed=0, prompt_ids=np.empty(0, np.int32)),
        )

    return make


def _step(scheduler: Scheduler) -> dict:
    """Schedule, compute and draw one token for whoever is complete; key to computed tokens."""
    chunks = scheduler.schedule()
    for chunk in chunks:
        scheduler.advance(chunk)
        if chunk.sequence.remaining == 0:
            chunk.sequence.append_token(7)
    return {chunk.sequence.key: chunk.count for chunk in chunks}


def _scheduler(blocks=100, seqs=8, budget=16, caching=False) -> Scheduler:
    pool = BlockPool(blocks, BLOCK, enable_prefix_caching=caching)
    return Scheduler(pool, max_num_seqs=seqs, max_num_batched_tokens=budget)


def test_prompts_are_cut_to_the_budget_and_decodes_go_first(sequence):
    scheduler = _scheduler(budget=10)
    scheduler.add(sequence("short", 4))
    scheduler.add(sequence("long", 25))
    assert _step(scheduler) == {"short": 4, "long": 6}
    assert _step(scheduler) == {"short": 1, "long": 9}
    assert _step(scheduler) == {"short": 1, "long": 9}
    assert _step(scheduler) == {"short": 1, "long": 1}


def test_no_more_than_max_num_seqs_run(sequence):
    scheduler = _scheduler(seqs=2)
    for key in "abc":
        scheduler.add(sequence(key, 3))
    assert set(_step(scheduler)) == {"a", "b"}
    assert scheduler.waiting_count == 1
    scheduler.remove(scheduler.running[0])
    assert set(_step(scheduler)) == {"b", "c"}


def test_a_prompt_waits_until_all_its_blocks_are_free(sequence):
    scheduler = _scheduler(blocks=6, budget=64)
    scheduler.add(sequence("first", 16))
    scheduler.add(sequence("wide", 12))
    scheduler.add(sequence("narrow", 4))
    assert set(_step(scheduler)) == {"first"}  # and nobody overtakes the one that waits
    assert scheduler.pool.used == 4


def test_chunked_prompts_do_not_promise_the_same_blocks_twice(sequence):
    scheduler = _scheduler(blocks=8, budget=6)
    scheduler.add(sequence("a", 24))
    scheduler.add(sequence("b", 4))
    assert _step(scheduler) == {"a": 6}
    scheduler.add(sequence("c", 12))
    assert set(_step(scheduler)) == {"a"}
    assert scheduler.preemptions == 0


def test_the_last_in_order_is_preempted_and_starts_again(sequence):
    scheduler = _scheduler(blocks=5, budget=64)
    early, late = sequence("early", 8), sequence("late", 8)
    scheduler.add(early)
    scheduler.add(late)
    assert set(_step(scheduler)) == {"early", "late"}
    assert scheduler.pool.used == 4
    assert set(_step(scheduler)) == {"early"}  # both need a block, one is left, and the later gives way
    assert scheduler.preemptions == 1
    assert late.preempted
    assert (late.computed, late.block_count) == (0, 0)
    scheduler.remove(early)
    assert _step(scheduler) == {"late": 9}  # prompt and first token


def test_priority_decides_who_is_preempted(sequence):
    scheduler = _scheduler(blocks=5, budget=64)
    scheduler.add(sequence("background", 8, priority=10))
    scheduler.add(sequence("urgent", 8, priority=-10))
    _step(scheduler)
    assert set(_step(scheduler)) == {"urgent"}


def test_cached_tokens_count_the_first_admission_only(sequence):
    scheduler = _scheduler(blocks=5, budget=64, caching=True)
    first = sequence("first", 8)
    scheduler.add(first)
    _step(scheduler)
    scheduler.remove(first)
    again = sequence("again", 8)
    scheduler.add(again)
    assert _step(scheduler) == {"again": 4}  # the last token must be computed, so its block is too
    assert again.cached_tokens == 4
    scheduler._preempt(again)
    _step(scheduler)
    assert again.cached_tokens == 4


def test_cancelled_waiting_sequences_leave_the_queue(sequence):
    scheduler = _scheduler(seqs=1)
    scheduler.add(sequence("running", 3))
    _step(scheduler)
    waiting = [sequence(index, 3, priority=5) for index in range(90)]
    for one in waiting:
        scheduler.add(one)
    for one in waiting[:-1]:
        scheduler.remove(one)
    assert scheduler.waiting_count == 1
    assert len(scheduler._queue) < 90
    scheduler.remove(scheduler.running[0])
    assert set(_step(scheduler)) == {89}
