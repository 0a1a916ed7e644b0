"""The default cost, in blocks, equals what users of the upstream router measured, and temperatures keep their meaning."""

from __future__ import annotations

import pytest

from dynamo.protocols.llm import DisaggregationMode
from dynamo.protocols.routing import RouterOverrides
from dynamo.router.core.cost import DEFAULT_COST, CostParameters, CostProfiles, WorkerFacts, costs, softmax_weights

DEFAULTS = CostParameters()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (WorkerFacts(64, new_blocks=9), 18.546875),
        (WorkerFacts(64, overlap_blocks=9, new_blocks=9), 9.546875),
        (WorkerFacts(64, overlap_blocks=9, new_blocks=0, active_decode_blocks=9), 9.546875),
    ],
)
def test_a_prompt_of_611_tokens_costs_what_upstream_logs(facts, expected):
    assert costs(DEFAULTS, 611, [facts]) == [expected]


def test_waiting_prefill_counts_in_blocks_of_each_worker():
    workers = [WorkerFacts(16, active_prefill_tokens=160), WorkerFacts(32, active_prefill_tokens=160)]
    assert costs(DEFAULTS, 32, workers) == [12.0, 6.0]


def test_credit_never_makes_a_cost_negative():
    assert costs(CostParameters(overlap_score_credit=5.0), 64, [WorkerFacts(64, overlap_blocks=1)]) == [0.0]


def test_scale_and_request_weight():
    facts = WorkerFacts(10, active_prefill_tokens=100, active_decode_blocks=3, active_requests=4)
    assert costs(CostParameters(prefill_load_scale=2.0, active_request_blocks=0.5), 100, [facts]) == [45.0]


def test_credit_decays_for_workers_busier_than_the_least():
    """One more request's worth of prefill halves the credit at decay 1."""
    parameters = CostParameters(overlap_score_credit_decay=1.0)
    idle = WorkerFacts(10, overlap_blocks=4)
    busy = WorkerFacts(10, overlap_blocks=4, active_prefill_tokens=100)
    assert costs(parameters, 100, [idle, busy]) == [6.0, 18.0]


def test_a_request_overrides_only_what_it_names():
    own = CostParameters(overlap_score_credit=0.5, prefill_load_scale=3.0, active_request_blocks=7.0)
    assert own.overridden(None) is own
    changed = own.overridden(RouterOverrides(prefill_load_scale=0.0))
    assert (changed.overlap_score_credit, changed.prefill_load_scale, changed.active_request_blocks) == (0.5, 0.0, 7.0)


def test_no_workers_cost_nothing():
    assert costs(CostParameters(overlap_score_credit_decay=1.0), 100, []) == []


def test_weights_fall_with_the_score_and_even_out_with_temperature():
    cold, warm = softmax_weights([-1.0, -2.0, -9.0], 0.1), softmax_weights([-1.0, -2.0, -9.0], 10.0)
    assert cold[0] == warm[0] == 1.0
    assert cold[0] > cold[1] > cold[2]
    assert warm[2] > 0.9


def test_the_scale_of_scores_does_not_matter():
    assert softmax_weights([-1.0, -3.0], 0.5) == pytest.approx(softmax_weights([-1000.0, -3000.0], 0.5))


def test_equal_scores_are_equally_likely():
    assert softmax_weights([2.0, 2.0], 0.3) == [1.0, 1.0]


def test_a_block_to_recompute_costs_more_than_one_that_waits():
    parameters = CostParameters(prefill_load_scale=2.0, recompute_load_scale=5.0)
    workers = [WorkerFacts(10, overlap_blocks=4), WorkerFacts(10, active_prefill_tokens=40)]
    assert costs(parameters, 100, workers) == [6 * 2.0 + 6 * 5.0, 14 * 2.0 + 10 * 5.0]


def test_what_is_cached_beyond_the_prompt_lowers_what_waits_but_never_what_is_recomputed():
    parameters = CostParameters(overlap_score_credit=2.0, recompute_load_scale=5.0)
    facts = WorkerFacts(10, overlap_blocks=8, active_prefill_tokens=100)
    assert costs(parameters, 100, [facts]) == [4.0]


def test_requests_cost_tokens_in_blocks_of_each_worker():
    workers = [WorkerFacts(size, active_requests=3) for size in (10, 20)]
    assert costs(CostParameters(active_request_tokens=200.0), 0, workers) == [60.0, 30.0]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_recent_work_counts_against_the_mean_at_every_load(scale):
    parameters = CostParameters(recent_load_tokens=1000.0)
    workers = [WorkerFacts(10, recent_tokens=scale * tokens) for tokens in (40_000.0, 80_000.0, 120_000.0)]
    assert costs(parameters, 0, workers) == pytest.approx([50.0, 100.0, 150.0])


def test_little_recent_work_counts_little():
    parameters = CostParameters(recent_load_tokens=1000.0)
    workers = [WorkerFacts(10, recent_tokens=3200.0), WorkerFacts(10)]
    assert costs(parameters, 0, workers) == pytest.approx([10.0, 0.0])


def test_a_lone_user_stays_where_the_conversation_is():
    """Nobody else is there: one worker has all of the recent work, and still is the best."""
    there = WorkerFacts(16, overlap_blocks=60, new_blocks=64, recent_tokens=1000.0)
    assert (
        min(costs(DEFAULT_COST, 1024, [there, WorkerFacts(16, new_blocks=64)])) == costs(DEFAULT_COST, 1024, [there])[0]
    )


def test_a_shared_system_prompt_does_not_gather_everybody():
    """All that is cached of a prompt is a system prompt, and the worker that has it has been busier than the others."""
    there = WorkerFacts(16, overlap_blocks=32, recent_tokens=90_000.0, active_requests=1)
    others = [WorkerFacts(16, recent_tokens=40_000.0) for _ in range(3)]
    found = costs(DEFAULT_COST, 2048, [there, *others])
    assert found[0] > found[1]


def test_decoding_looks_at_contexts_and_requests_alone():
    decode = CostProfiles.from_aggregated(DEFAULT_COST).of(DisaggregationMode.DECODE)
    holds = WorkerFacts(16, 10, 20, active_prefill_tokens=5000, active_decode_blocks=7, recent_tokens=9e6)
    assert costs(decode, 320, [holds]) == [27.0]
    busy, idle = WorkerFacts(16, active_requests=4), WorkerFacts(16)
    assert costs(decode, 320, [busy, idle]) == [100.0, 0.0]


def test_profiles_of_upstreams_cost_differ_in_decode_alone():
    upstream = CostProfiles.from_aggregated(CostParameters())
    assert upstream.of(DisaggregationMode.PREFILL) == upstream.of(DisaggregationMode.AGGREGATED) == CostParameters()
    assert upstream.of(DisaggregationMode.DECODE).prefill_load_scale == 0
