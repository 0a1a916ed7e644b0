"""The default cost, in blocks, equals what users of the upstream router measured, and temperatures keep their meaning."""

from __future__ import annotations

import pytest

from dynamo.protocols.routing import RouterOverrides
from dynamo.router.core.cost import CostParameters, WorkerFacts, costs, softmax_weights

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
