"""The pure scheduler: budgets, reuse, preemption, transfers, and the time that steps take."""

from __future__ import annotations

import pytest

from dynamo.mocker.core import BlocksRemoved, BlocksStored, CoreLimits, EngineCore
from dynamo.mocker.perf_model import PerfModel
from dynamo.mocker.sequence import Sequence, SequenceState

PERF = PerfModel(
    prefill_base=1.0,
    prefill_token=0.1,
    prefill_token_context=0.001,
    decode_base=2.0,
    decode_request=0.01,
    decode_context_token=0.0001,
)


def _core(**limits) -> EngineCore:
    return EngineCore(CoreLimits(**{"total_blocks": 100, "block_size": 4, **limits}), PERF)


def _added(core: EngineCore, *args, **kwargs) -> Sequence:
    sequence = Sequence(None, *args, **kwargs)
    core.add(sequence)
    return sequence


def _run(core: EngineCore) -> list:
    results, now = [], 0.0
    while core.has_work:
        result = core.step(now)
        now += result.duration_seconds
        if not result.outputs and not result.duration_seconds:
            now = result.wait_until
        results.append(result)
    return results


def test_a_prefill_gives_the_first_token_and_each_decode_one_more() -> None:
    core = _core()
    sequence = _added(core, 6, 3)
    first = core.step(0.0)
    assert first.outputs == [sequence]
    assert first.duration_seconds == pytest.approx(1 + 0.1 * 6 + 0.001 * (0 + 1 + 2 + 3 + 4 + 5))
    second = core.step(1.0)
    assert second.duration_seconds == pytest.approx(2 + 0.01 + 0.0001 * 7)
    third = core.step(2.0)
    assert third.duration_seconds == pytest.approx(2 + 0.01 + 0.0001 * 8)
    assert sequence.state is SequenceState.ENDED
    assert not core.has_work
    assert core.pool.used == 0


def test_long_prompts_are_computed_in_chunks_behind_the_decodes() -> None:
    core = _core(max_num_batched_tokens=10)
    short = _added(core, 4, 50)
    core.step(0.0)
    long = _added(core, 25, 1)
    computed = []
    while long.state is not SequenceState.ENDED:
        assert short in core.step(0.0).outputs
        computed.append(long.computed)
    assert computed == [9, 18, 25]


def test_without_chunks_a_prompt_waits_for_a_step_that_takes_it_whole() -> None:
    core = _core(max_num_batched_tokens=10, enable_chunked_prefill=False)
    first, second = _added(core, 7, 1), _added(core, 8, 1)
    assert core.step(0.0).outputs == [first]
    assert core.step(1.0).outputs == [second]
    with pytest.raises(ValueError, match="larger budget"):
        core.add(Sequence(None, 11, 1))


def test_full_blocks_are_reused_and_the_last_token_is_computed_again() -> None:
    core = _core()
    _added(core, 8, 1, [11, 12])
    stored = [event for result in _run(core) for event in result.events]
    assert [(event.start, event.stop) for event in stored] == [(0, 2)]
    again, longer, other = _added(core, 8, 1, [11, 12]), _added(core, 10, 1, [11, 12]), _added(core, 10, 1, [11, 13])
    _run(core)
    assert (again.cached_tokens, longer.cached_tokens, other.cached_tokens) == (4, 8, 4)


def test_without_prefix_caching_nothing_is_kept() -> None:
    core = _core(enable_prefix_caching=False)
    _added(core, 8, 1, [11, 12])
    again = _added(core, 8, 1, [11, 12])
    assert not any(result.events for result in _run(core))
    assert (again.cached_tokens, core.pool.cached) == (0, 0)


def test_output_blocks_are_cached_under_their_names() -> None:
    core = _core()
    _added(core, 4, 5, [1, 2])
    _run(core)
    follower = _added(core, 9, 1, [1, 2])
    _run(core)
    assert follower.cached_tokens == 8


def test_evictions_are_told_before_what_took_their_place() -> None:
    core = _core(total_blocks=3)
    _added(core, 8, 1, [1, 2])
    _run(core)
    _added(core, 12, 1, [7, 8, 9])
    events = [event for result in _run(core) for event in result.events]
    assert events[0] == BlocksRemoved([2, 1])
    assert isinstance(events[1], BlocksStored)


def test_the_last_to_arrive_is_preempted_and_computed_again() -> None:
    core = _core(total_blocks=5)
    first, second = _added(core, 8, 9), _added(core, 8, 9)
    core.step(0.0)
    for _ in range(4):
        core.step(0.0)
    assert second.state is SequenceState.WAITING
    assert (second.preemptions, core.preemptions) == (1, 1)
    _run(core)
    assert (first.generated, second.generated) == (9, 9)
    assert core.pool.used == 0


def test_a_preempted_sequence_finds_its_own_blocks_and_keeps_its_count_of_cached_tokens() -> None:
    core = _core(total_blocks=6)
    first = _added(core, 8, 12, [1, 2, 3, 4])
    second = _added(core, 8, 12, [5, 6, 7, 8])
    _run(core)
    assert first.generated == second.generated == 12
    assert second.preemptions > 0
    assert second.cached_tokens == 0


def test_a_lower_priority_number_runs_first() -> None:
    core = _core(max_num_seqs=1)
    late, soon = _added(core, 4, 1, priority=5), _added(core, 4, 1, priority=-5)
    assert [result.outputs for result in _run(core)] == [[soon], [late]]


def test_no_more_sequences_run_than_allowed() -> None:
    core = _core(max_num_seqs=2)
    for _ in range(5):
        _added(core, 4, 3)
    core.step(0.0)
    load = core.load()
    assert (load.running_requests, load.waiting_requests) == (2, 3)


def test_load_counts_prefill_and_decode_apart() -> None:
    core = _core(max_num_batched_tokens=10)
    _added(core, 6, 9)
    core.step(0.0)
    _added(core, 30, 9)
    core.step(0.0)
    load = core.load(3)
    assert (load.dp_rank, load.active_prefill_tokens, load.active_decode_blocks) == (3, 21, 2)
    assert load.used_kv_blocks == 2 + 8


def test_an_abort_frees_everything_wherever_the_sequence_is() -> None:
    core = _core(max_num_seqs=2, max_num_batched_tokens=8)
    decoding, prefilling = _added(core, 4, 9), _added(core, 30, 9)
    waiting = _added(core, 4, 9)
    core.step(0.0)
    for sequence in (decoding, prefilling, waiting):
        core.abort(sequence)
        core.abort(sequence)
    assert (core.pool.used, core.request_count, core.has_work) == (0, 0, False)


def test_many_aborted_waiters_leave_no_trace() -> None:
    core = _core(max_num_seqs=1)
    _added(core, 4, 1000 // 4)
    core.step(0.0)
    for _ in range(500):
        core.abort(_added(core, 4, 1))
    assert len(core._waiting) < 100
    kept = _added(core, 4, 1)
    _run(core)
    assert kept.generated == 1


def test_transferred_kv_takes_its_time_and_no_computation() -> None:
    core = _core(transfer_seconds_per_token=0.5)
    sequence = _added(core, 9, 2, [1, 2], transferred=True)
    waiting = core.step(10.0)
    assert (waiting.duration_seconds, waiting.outputs, waiting.wait_until) == (0.0, [], 10.0 + 8 * 0.5)
    early = core.step(13.9)
    assert early.outputs == []
    arrived = core.step(14.0)
    assert arrived.outputs == [sequence]
    assert arrived.duration_seconds == pytest.approx(1 + 0.1 + 0.001 * 8)
    assert core.pool.match([1, 2]) == 2


def test_blocks_that_are_cached_need_no_transfer() -> None:
    core = _core(transfer_seconds_per_token=0.5)
    _added(core, 8, 1, [1, 2])
    _run(core)
    _added(core, 9, 1, [1, 2], transferred=True)
    assert core.step(0.0).wait_until == 0.0


def test_paused_caching_is_made_up_for_by_those_that_still_run() -> None:
    core = _core()
    core.caching_paused = True
    _added(core, 8, 9, [1, 2, 3])
    assert core.step(0.0).events == []
    core.caching_paused = False
    events = [event for result in _run(core) for event in result.events]
    assert [(event.start, event.stop) for event in events] == [(0, 3)]


@pytest.mark.parametrize(("prompt", "output"), [(0, 1), (1, 0), (397, 5)])
def test_what_can_never_run_is_refused(prompt: int, output: int) -> None:
    with pytest.raises(ValueError, match="need"):
        _core().add(Sequence(None, prompt, output))


def test_the_largest_request_that_fits_is_served() -> None:
    core = _core()
    sequence = _added(core, 397, 4)
    _run(core)
    assert sequence.generated == 4
