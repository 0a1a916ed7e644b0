"""The default cost keeps its promises on the trace that is shipped, and pure affinity shows what it guards against."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo.mocker.core import CoreLimits
from dynamo.mocker.perf_model import PerfModel
from dynamo.replay.command import replay_mode, trace_facts
from dynamo.replay.results import ModeResult
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.simulation import Simulation
from dynamo.replay.traces import Trace, read_trace
from dynamo.router.settings import RouterSettings

_TRACE = Path(__file__).parents[4] / "benchmarks" / "traces" / "conversations.jsonl"


@pytest.fixture(scope="module")
def shipped() -> Trace:
    return read_trace(_TRACE)


def _replay(trace: Trace, mode: str, workers: int = 8, **settings) -> ModeResult:
    limits = CoreLimits(total_blocks=1 << 40, block_size=trace.block_size)
    router = ReplayRouter(RouterSettings(router_mode=mode, **settings), limits, workers)
    simulation = Simulation(trace, router, workers=workers, limits=limits, perf_model=PerfModel())
    return replay_mode(mode, simulation, trace_facts(trace))


def test_the_default_finds_what_there_is_and_stays_even(shipped: Trace) -> None:
    ours, upstream, even = (_replay(shipped, mode) for mode in ("kv", "kv-upstream", "round-robin"))
    assert ours.ideal_share >= 0.97
    assert ours.imbalance <= 1.10
    assert ours.window_imbalance_p90 <= upstream.window_imbalance_p90
    for other in (upstream, even):
        assert ours.hit_rate > other.hit_rate
        assert ours.ttft_seconds.mean < other.ttft_seconds.mean
        assert ours.ttft_seconds.p90 < other.ttft_seconds.p90


def test_affinity_alone_collapses_on_the_worker_that_has_the_common_block(shipped: Trace) -> None:
    begin = Trace("begin", shipped.block_size, shipped.requests[:400])
    only_affinity = {"router_recompute_load_scale": 1e6}
    collapsed, ours = _replay(begin, "kv", **only_affinity), _replay(begin, "kv")
    assert collapsed.imbalance > 6
    assert ours.imbalance < 1.4
    assert ours.ideal_share >= 0.95


def test_the_same_seed_is_the_same_replay(shipped: Trace) -> None:
    begin = Trace("begin", shipped.block_size, shipped.requests[:100])
    limits = CoreLimits(total_blocks=1 << 40, block_size=begin.block_size)
    chosen = []
    for seed in (None, 0, 3):
        router = ReplayRouter(RouterSettings(router_mode="kv", router_seed=seed), limits, 8)
        flights = Simulation(begin, router, workers=8, limits=limits, perf_model=PerfModel()).run()
        chosen.append([flight.worker for flight in flights])
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
