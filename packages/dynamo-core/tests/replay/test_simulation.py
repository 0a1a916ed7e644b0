"""Replays with results that can be worked out by hand, and what holds for all of them."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError
from dynamo.mocker.core import CoreLimits
from dynamo.mocker.perf_model import PerfModel
from dynamo.replay.command import replay_mode
from dynamo.replay.report import TraceFacts
from dynamo.replay.results import ModeResult, Percentiles
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.simulation import Flight, Simulation
from dynamo.replay.traces import Trace, TraceRequest, ideal_cached_tokens
from dynamo.router.settings import RouterSettings

BY_HAND = Trace(
    "by-hand",
    4,
    [
        TraceRequest(0.0, 8, 1, [1, 2]),
        TraceRequest(1.0, 8, 2, [1, 2]),
        TraceRequest(5.0, 8, 1, [1, 2]),
        TraceRequest(5.0, 8, 1, [9, 10]),
    ],
)


def _simulation(
    trace: Trace, perf_model: PerfModel, *, mode: str = "round-robin", workers: int = 2, delay=0.0, blocks=1 << 40, **kw
) -> Simulation:
    limits = CoreLimits(total_blocks=blocks, block_size=trace.block_size)
    router = ReplayRouter(RouterSettings(router_mode=mode, **kw), limits, workers)
    return Simulation(
        trace, router, workers=workers, limits=limits, perf_model=perf_model, kv_event_delay_seconds=delay
    )


def _result(trace: Trace, perf_model: PerfModel, **options) -> ModeResult:
    prompt_tokens = sum(request.input_tokens for request in trace.requests)
    facts = TraceFacts(
        trace.name, len(trace.requests), prompt_tokens, 0, 0.0, sum(ideal_cached_tokens(trace)) / prompt_tokens
    )
    return replay_mode(options.get("mode", "round-robin"), _simulation(trace, perf_model, **options), facts)


def _times(flights: list[Flight]) -> list[tuple[float, float]]:
    return [(round(flight.first_token, 9), round(flight.end, 9)) for flight in flights]


def test_round_robin_is_as_worked_out_by_hand(perf_model: PerfModel) -> None:
    simulation = _simulation(BY_HAND, perf_model)
    flights = simulation.run()
    assert [flight.worker for flight in flights] == [0, 1, 0, 1]
    # 1 + 8 x 0.1; the same and 2 for the second token; one block of two reused: 1 + 4 x 0.1; nothing reused.
    assert _times(flights) == [(1.8, 1.8), (2.8, 4.8), (6.4, 6.4), (6.8, 6.8)]
    assert [flight.sequence.cached_tokens for flight in flights] == [0, 0, 4, 0]
    assert simulation.token_gaps.tolist() == [pytest.approx(2.0)]


def test_its_summary_too(perf_model: PerfModel) -> None:
    result = _result(BY_HAND, perf_model)
    assert result.hit_rate == pytest.approx(4 / 32)
    assert result.ideal_share == pytest.approx(4 / 8)
    assert result.imbalance == pytest.approx(16 / 14)
    assert result.window_imbalance_p90 == pytest.approx(16 / 14)
    assert result.ttft_seconds.mean == pytest.approx((1.8 + 1.8 + 1.4 + 1.8) / 4)
    assert result.e2e_seconds.mean == pytest.approx((1.8 + 3.8 + 1.4 + 1.8) / 4)
    assert result.itl_seconds == Percentiles(2.0, 2.0, 2.0, 2.0)
    assert result.makespan_seconds == pytest.approx(6.8)
    assert result.requests_per_second == pytest.approx(4 / 6.8)
    assert result.output_tokens_per_second == pytest.approx(5 / 6.8)
    assert (result.requests, result.workers, result.preemptions) == (4, 2, 0)


def test_what_arrives_at_once_shares_a_step(perf_model: PerfModel) -> None:
    trace = Trace("twins", 4, [TraceRequest(0.0, 8, 1, [1, 2]), TraceRequest(0.0, 8, 1, [5, 6])])
    assert _times(_simulation(trace, perf_model, workers=1).run()) == [(2.6, 2.6), (2.6, 2.6)]


def test_who_arrives_within_a_step_waits_for_its_end(perf_model: PerfModel) -> None:
    trace = Trace("late", 4, [TraceRequest(0.0, 8, 1, []), TraceRequest(0.5, 8, 1, [])])
    assert _times(_simulation(trace, perf_model, workers=1).run()) == [(1.8, 1.8), (3.6, 3.6)]


def test_kv_routing_reuses_what_there_is(conversations: Trace, perf_model: PerfModel) -> None:
    fast = PerfModel(0.01, 1e-4, 0.0, 0.01, 0.0, 0.0)
    even, aware = (_result(conversations, fast, mode=mode, workers=4) for mode in ("round-robin", "kv"))
    assert aware.ideal_share >= 0.97
    assert even.ideal_share < 0.7
    assert aware.ttft_seconds.mean < even.ttft_seconds.mean


def test_a_bounded_cache_forgets(conversations: Trace, perf_model: PerfModel) -> None:
    fast = PerfModel(0.01, 1e-4, 0.0, 0.01, 0.0, 0.0)
    bounded = _result(conversations, fast, mode="kv", workers=4, blocks=16)
    assert bounded.ideal_share < 0.9


@pytest.mark.parametrize("mode", ["round-robin", "random", "power-of-two", "least-loaded", "kv"])
def test_every_mode_serves_everything_once(conversations: Trace, perf_model: PerfModel, mode: str) -> None:
    simulation = _simulation(conversations, perf_model, mode=mode, workers=3, blocks=32)
    flights = simulation.run()
    assert [flight.request for flight in flights] == conversations.requests
    for flight in flights:
        assert flight.request.arrival_seconds < flight.first_token <= flight.end == flight.last_token
        assert flight.sequence.generated == 3
    assert len(simulation.token_gaps) == 2 * len(flights)
    assert all(gap > 0 for gap in simulation.token_gaps)
    for worker in simulation.workers:
        assert (worker.core.pool.used, worker.core.has_work) == (0, False)


def test_a_replay_is_the_same_every_time(conversations: Trace, perf_model: PerfModel) -> None:
    first, again = (_times(_simulation(conversations, perf_model).run()) for _ in range(2))
    assert first == again


class _WatchedRouter(ReplayRouter):
    """Notes how many decisions had been made when KV events came."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.decisions = 0
        self.seen: list[int] = []

    def select(self, request, now):
        self.decisions += 1
        return super().select(request, now)

    def take_events(self, worker, events) -> None:
        self.seen.append(self.decisions)
        super().take_events(worker, events)


@pytest.mark.parametrize(("delay", "expected"), [(0.0, [1, 2, 3]), (5.0, [2])])
def test_events_come_when_their_delay_has_passed(perf_model: PerfModel, delay: float, expected: list[int]) -> None:
    requests = [TraceRequest(time, 8, 1, [10 * n, 10 * n + 1]) for n, time in enumerate((0.0, 3.0, 7.0), 1)]
    limits = CoreLimits(total_blocks=100, block_size=4)
    router = _WatchedRouter(RouterSettings(router_mode="kv"), limits, 1)
    trace = Trace("delayed", 4, requests)
    Simulation(trace, router, workers=1, limits=limits, perf_model=perf_model, kv_event_delay_seconds=delay).run()
    assert router.seen == expected


def test_workers_that_are_too_small_are_a_clear_error(perf_model: PerfModel) -> None:
    with pytest.raises(ConfigError, match=r"at 0\.000 s does not fit a worker") as caught:
        _simulation(BY_HAND, perf_model, blocks=1).run()
    assert caught.value.param == "blocks_per_worker"


def test_what_the_routers_thresholds_refuse_is_counted(perf_model: PerfModel) -> None:
    trace = Trace("burst", 4, [TraceRequest(float(n), 40_000, 1, []) for n in range(9)])
    simulation = _simulation(trace, perf_model, workers=2, active_prefill_tokens_threshold=1000)
    assert len(simulation.run()) == 2
    assert simulation.refused == 7


def test_an_unknown_mode_is_refused(perf_model: PerfModel) -> None:
    with pytest.raises(ConfigError, match="unknown router mode 'fastest'"):
        _simulation(BY_HAND, perf_model, mode="fastest")
