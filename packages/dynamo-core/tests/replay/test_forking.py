"""Forked decisions are exact, and tell a bad policy from a good one."""

from __future__ import annotations

import math
import os
import random

import pytest

from dynamo.errors import DynamoError
from dynamo.mocker.core import CoreLimits
from dynamo.mocker.perf_model import PerfModel
from dynamo.replay.forking import DecisionForks, sample_regret
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.simulation import Simulation
from dynamo.replay.traces import Trace, TraceRequest
from dynamo.router.settings import RouterSettings

BLOCK = 16
WORKERS = 3
LIMITS = CoreLimits(total_blocks=100_000, block_size=BLOCK)
SLOW = PerfModel(prefill_base=0.02, prefill_token=1e-3, decode_base=0.02)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def busy_trace(requests: int = 120) -> Trace:
    """Conversations that come faster than one worker could take them."""
    rng = random.Random(11)
    prompts: dict[int, list[int]] = {}
    found = []
    for number in range(requests):
        conversation = rng.randrange(12)
        hashes = prompts.setdefault(conversation, [])
        prompts[conversation] = hashes = [*hashes, *(rng.getrandbits(60) for _ in range(rng.randrange(4, 24)))]
        found.append(TraceRequest(number * 0.15, len(hashes) * BLOCK + 3, rng.randrange(2, 30), hashes))
    return Trace("busy", BLOCK, found)


def replayed(sample: int = 4, **settings):
    trace = busy_trace()
    router = ReplayRouter(RouterSettings(**settings), LIMITS, WORKERS)
    forks = DecisionForks(len(trace.requests), sample)
    simulation = Simulation(trace, router, workers=WORKERS, limits=LIMITS, perf_model=SLOW, forks=forks)
    return forks, simulation.run()


@pytest.mark.parametrize("mode", ["round-robin", "kv"])
def test_the_fork_of_what_was_chosen_is_what_happened(mode):
    forks, flights = replayed(router_mode=mode)
    assert len(forks.seconds) == 4
    for number, seconds in forks.seconds.items():
        flight = flights[number]
        assert flight.number == number
        assert len(seconds) == WORKERS
        assert seconds[flight.worker] == pytest.approx(flight.ttft, abs=1e-12)


def test_forking_changes_nothing():
    _, with_forks = replayed(router_mode="round-robin")
    trace = busy_trace()
    router = ReplayRouter(RouterSettings(router_mode="round-robin"), LIMITS, WORKERS)
    without = Simulation(trace, router, workers=WORKERS, limits=LIMITS, perf_model=SLOW).run()
    assert [(f.worker, f.end) for f in with_forks] == [(f.worker, f.end) for f in without]


def test_a_bad_policy_has_a_large_regret_and_a_good_one_little():
    good = sample_regret(*replayed(8, router_mode="kv"))
    # A worker without requests scores 1, which costs it a million blocks: all go to the busiest.
    bad = sample_regret(*replayed(8, router_mode="kv", router_scorers=["active-requests=-1000000"]))
    assert bad.decisions == good.decisions == 8
    assert bad.mean_seconds > 1.0
    assert bad.beaten > 0.8
    assert good.mean_seconds < 0.1 * bad.mean_seconds
    assert good.mean_positive_seconds < 0.1 * bad.mean_positive_seconds
    # The router's predictor says so, too.
    assert bad.predicted_mean_seconds > 0.3 * bad.mean_seconds
    assert bad.prediction_error_seconds >= 0


def test_round_robin_measures_nothing_to_predict_from():
    sample = sample_regret(*replayed(router_mode="round-robin"))
    assert sample.decisions == 4
    assert sample.predicted_mean_seconds is sample.prediction_error_seconds is None


def test_one_worker_leaves_nothing_to_regret():
    trace = busy_trace(10)
    router = ReplayRouter(RouterSettings(router_mode="kv"), LIMITS, 1)
    forks = DecisionForks(10, 3)
    flights = Simulation(trace, router, workers=1, limits=LIMITS, perf_model=SLOW, forks=forks).run()
    assert sample_regret(forks, flights) is None


def test_a_sample_is_spread_over_the_trace_and_never_larger_than_it():
    class Recorder:
        def first_token_at(self, worker, number):
            return number + worker / 10

    forks = DecisionForks(2, 50)
    for number in range(2):
        forks.before(Recorder(), number, 2)
    assert forks.seconds == {number: [number, number + 0.1] for number in range(2)}
    spread = DecisionForks(100, 4)
    for number in range(100):
        spread.before(Recorder(), number, 1)
    assert [round(number / 25, 1) for number in sorted(spread.seconds)] == [0.5, 1.5, 2.5, 3.5]


def test_a_worker_beyond_its_threshold_is_no_alternative():
    _, flights = done = replayed(router_mode="kv", active_decode_blocks_threshold=1e-4)
    assert any(math.isnan(value) for seconds in done[0].seconds.values() for value in seconds)
    assert len(flights) < 120


def test_a_child_that_dies_is_an_error_of_the_parent(capfd):
    class Dying:
        def first_token_at(self, worker, number):
            raise MemoryError

    with pytest.raises(DynamoError, match="without an answer"):
        DecisionForks(1, 1).before(Dying(), 0, 1)
