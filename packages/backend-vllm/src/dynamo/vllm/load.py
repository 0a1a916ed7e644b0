"""Load and metrics of a vLLM engine, from what it tells its stat loggers after every step.

The engine adapter passes `VllmLoad.stat_logger` to vLLM (``stat_loggers=``) and answers `LoadSource` and
`MetricsSource` with the rest. Without log statistics (``--disable-log-stats``) vLLM gets no logger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry

from dynamo.protocols.engine import MetricFamily, MetricSample
from dynamo.protocols.load import EngineLoad
from dynamo.vllm.step_metrics import step_metrics_class

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

__all__ = ["VllmLoad"]

_PREFIX = "vllm:"


class _Rank:
    """One engine of a data-parallel group, as of its last step."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._cache = vllm_config.cache_config
        self._running = 0
        self._waiting = 0
        self._preempted = 0
        self._kv_usage = 0.0
        self._queried_tokens = 0
        self._hit_tokens = 0

    def scheduled(self, stats: SchedulerStats) -> None:
        self._running = stats.num_running_reqs
        self._waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        self._kv_usage = stats.kv_cache_usage
        prefix = stats.prefix_cache_stats
        if prefix is not None:
            self._queried_tokens += prefix.queries
            self._hit_tokens += prefix.hits

    def iterated(self, stats: IterationStats) -> None:
        self._preempted += stats.num_preempted_reqs

    def load(self, dp_rank: int, ranks: int) -> EngineLoad:
        """The load as of now. vLLM adds up the blocks of all ranks, and counts evictable blocks as free."""
        total = (self._cache.num_gpu_blocks or 0) // ranks
        used = round(self._kv_usage * total)
        return EngineLoad(
            dp_rank=dp_rank,
            waiting_requests=self._waiting,
            running_requests=self._running,
            preempted_requests=self._preempted,
            used_kv_blocks=used,
            total_kv_blocks=total,
            active_decode_blocks=used,
            prefix_cache_queried_tokens=self._queried_tokens,
            prefix_cache_hit_tokens=self._hit_tokens,
        )


class VllmLoad:
    """Load per engine index, which is the data-parallel rank, and vLLM's metrics."""

    def __init__(self) -> None:
        self._ranks: dict[int, _Rank] = {}
        self._flush: Callable[[], None] = lambda: None

    def load(self) -> Sequence[EngineLoad]:
        """Load after the last step of each rank; nothing before the engine is there."""
        return [rank.load(index, len(self._ranks)) for index, rank in sorted(self._ranks.items())]

    def metrics(self, registry: CollectorRegistry = REGISTRY) -> Iterator[MetricFamily]:
        """What vLLM measures, under its own names; it keeps them in the process-wide registry."""
        self._flush()
        for family in registry.collect():
            if family.name.startswith(_PREFIX):
                samples = [MetricSample(sample.name, dict(sample.labels), sample.value) for sample in family.samples]
                yield MetricFamily(family.name, family.type, family.documentation, samples)

    def stat_logger(self) -> Callable[..., Any]:
        """The class that vLLM makes a logger of; imports vLLM."""
        return step_metrics_class(self._made, self._recorded)

    def _made(self, flush: Callable[[], None], config: VllmConfig, engine_indexes: Sequence[int]) -> None:
        self._flush = flush
        self._ranks = {index: _Rank(config) for index in engine_indexes}

    def _recorded(self, engine_index: int, step: SchedulerStats | None, iteration: IterationStats | None) -> None:
        rank = self._ranks[engine_index]
        if step is not None:
            rank.scheduled(step)
        if iteration is not None:
            rank.iterated(iteration)
