"""Known facts of a public trace, where it lies on this machine: ``DYNAMO_TRACES``, or beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynamo.mocker.core import CoreLimits
from dynamo.mocker.perf_model import PerfModel
from dynamo.replay.command import replay_mode, trace_facts
from dynamo.replay.routing import ReplayRouter
from dynamo.replay.simulation import Simulation
from dynamo.replay.traces import Trace, ideal_cached_tokens, read_trace
from dynamo.router.settings import RouterSettings

_NAME = "mooncake/conversation_trace.jsonl"


@pytest.fixture(scope="module")
def conversation() -> Trace:
    named = os.environ.get("DYNAMO_TRACES")
    beside = Path(__file__).parents[5].glob(f"*/traces/{_NAME}")
    path = Path(named) / _NAME if named else next(beside, None)
    if path is None or not path.is_file():
        pytest.skip("set DYNAMO_TRACES to a directory with mooncake/conversation_trace.jsonl of kvcache-ai/Mooncake")
    return read_trace(path)


def test_the_mooncake_conversation_trace_is_what_it_was(conversation: Trace) -> None:
    assert len(conversation.requests) == 12_031
    tokens = sum(request.input_tokens for request in conversation.requests)
    assert sum(ideal_cached_tokens(conversation)) / tokens == pytest.approx(0.373, abs=0.001)


def test_kv_routing_finds_more_of_it_than_round_robin(conversation: Trace) -> None:
    limits = CoreLimits(total_blocks=1 << 40, block_size=conversation.block_size)
    begin = Trace("begin", conversation.block_size, conversation.requests[:1500])
    cached = {}
    for mode in ("round-robin", "kv"):
        router = ReplayRouter(RouterSettings(router_mode=mode), limits, 8)
        flights = Simulation(begin, router, workers=8, limits=limits, perf_model=PerfModel()).run()
        cached[mode] = sum(flight.sequence.cached_tokens for flight in flights)
    assert cached["kv"] > 1.5 * cached["round-robin"]
    assert cached["kv"] <= sum(ideal_cached_tokens(begin))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [8, 16])
def test_the_default_cost_keeps_its_promises_on_all_of_it(conversation: Trace, workers: int) -> None:
    results = {}
    limits = CoreLimits(total_blocks=1 << 40, block_size=conversation.block_size)
    for mode in ("round-robin", "least-loaded", "kv-upstream", "kv"):
        router = ReplayRouter(RouterSettings(router_mode=mode), limits, workers)
        simulation = Simulation(conversation, router, workers=workers, limits=limits, perf_model=PerfModel())
        results[mode] = replay_mode(mode, simulation, trace_facts(conversation))
    ours = results["kv"]
    assert ours.ideal_share >= 0.97
    assert ours.imbalance <= 1.10
    assert ours.window_imbalance_p90 <= 1.1 * results["least-loaded"].window_imbalance_p90
    for other in (results["round-robin"], results["kv-upstream"]):
        assert ours.ttft_seconds.mean < other.ttft_seconds.mean
        assert ours.ttft_seconds.p90 < other.ttft_seconds.p90
