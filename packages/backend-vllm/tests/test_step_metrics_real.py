"""Metrics whose steps are entered together are those that vLLM itself would show. `nox -s "engine(vllm)"`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from dynamo.reference import demo_model_directory
from dynamo.vllm.load import VllmLoad

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def config() -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    flags: dict[str, Any] = {"model": str(demo_model_directory()), "dtype": "float32", "block_size": 32}
    return AsyncEngineArgs(**flags, max_model_len=512, enforce_eager=True).create_engine_config()


def steps() -> Iterator[tuple[Any, Any]]:
    """A request comes, 300 tokens are made with no change but for a second one that is preempted, and it ends."""
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats, PrefixCacheStats, SchedulerStats

    first = IterationStats()
    first.num_generation_tokens = 1
    first.time_to_first_tokens_iter = [0.02]
    first.prompt_token_stats.total = first.prompt_token_stats.computed = 64
    prefix = PrefixCacheStats(requests=1, queries=64, hits=32)
    yield SchedulerStats(num_running_reqs=1, kv_cache_usage=0.1, prefix_cache_stats=prefix), first
    for number in range(300):
        decoded = IterationStats()
        decoded.num_generation_tokens = 1 + number % 2
        decoded.inter_token_latencies_iter = [0.001 * (1 + number % 7)] * decoded.num_generation_tokens
        decoded.num_preempted_reqs = int(number == 200)
        yield SchedulerStats(num_running_reqs=1 + number % 2, kv_cache_usage=number / 400), decoded
    yield SchedulerStats(num_running_reqs=1, num_waiting_reqs=2, kv_cache_usage=0.9), None
    last = IterationStats()
    last.num_generation_tokens = 1
    last.inter_token_latencies_iter = [0.004]
    last.finished_requests = [FinishedRequestStats(FinishReason.STOP, num_prompt_tokens=64, num_generation_tokens=300)]
    yield None, last


def shown() -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(f"{key}={value}" for key, value in sample.labels.items())): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if family.name.startswith("vllm:") and not sample.name.endswith("_created")
    }


@pytest.mark.parametrize("count", [1, 2, 150, 290, 303], ids=lambda count: f"after {count} steps")
def test_held_steps_show_the_same(config, count):
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    some = list(steps())[:count]
    plain = PrometheusStatLogger(config, [0])
    for step, iteration in some:
        plain.record(step, iteration)
    expected = shown()

    load = VllmLoad()
    logger = load.stat_logger()(config, [0])
    for step, iteration in some:
        logger.record(scheduler_stats=step, iteration_stats=iteration, mm_cache_stats=None, engine_idx=0)
    assert {family.name for family in load.metrics()} >= {"vllm:generation_tokens", "vllm:num_requests_running"}
    assert shown() == pytest.approx(expected)
    assert len(expected) > 100
    (rank,) = load.load()
    assert (rank.prefix_cache_queried_tokens, rank.prefix_cache_hit_tokens) == (64, 32)
    assert rank.preempted_requests == (count > 201)
