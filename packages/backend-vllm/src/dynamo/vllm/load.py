"""Load and metrics of a vLLM engine, from what it tells its stat loggers after every step.

The engine adapter passes `VllmLoad.stat_logger` to vLLM (``stat_loggers=``) and answers `LoadSource` and
`MetricsSource` with the rest. Without log statistics (``--disable-log-stats``) vLLM calls no logger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry

from dynamo.protocols.engine import MetricFamily, MetricSample
from dynamo.protocols.load import EngineLoad

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.loggers import StatLoggerBase
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

__all__ = ["VllmLoad", "vllm_metrics"]

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
    """Load per engine index, which is the data-parallel rank."""

    def __init__(self) -> None:
        self._ranks: dict[int, _Rank] = {}

    def load(self) -> Sequence[EngineLoad]:
        """Load after the last step of each rank; nothing before the engine is there."""
        return [rank.load(index, len(self._ranks)) for index, rank in sorted(self._ranks.items())]

    def stat_logger(self, vllm_config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """What vLLM calls to make a logger per engine index; imports vLLM."""
        rank = self._ranks[engine_index] = _Rank(vllm_config)
        return _logger_class()(rank)


def _logger_class() -> Any:
    from vllm.v1.metrics.loggers import StatLoggerBase

    class LoadLogger(StatLoggerBase):  # type: ignore[misc,unused-ignore]  # Any where vLLM is not installed
        def __init__(self, rank: _Rank) -> None:
            self._rank = rank

        def record(
            self,
            scheduler_stats: SchedulerStats | None,
            iteration_stats: IterationStats | None,
            mm_cache_stats: object = None,  # noqa: ARG002 - vLLM passes it by name
            engine_idx: int = 0,  # noqa: ARG002 - one logger per engine
        ) -> None:
            if scheduler_stats is not None:
                self._rank.scheduled(scheduler_stats)
            if iteration_stats is not None:
                self._rank.iterated(iteration_stats)

        def log_engine_initialized(self) -> None:
            """Everything is known from the first step on."""

    return LoadLogger


def vllm_metrics(registry: CollectorRegistry = REGISTRY) -> Iterator[MetricFamily]:
    """What vLLM measures, under its own names; it keeps them in the process-wide registry."""
    for family in registry.collect():
        if family.name.startswith(_PREFIX):
            samples = [MetricSample(sample.name, dict(sample.labels), sample.value) for sample in family.samples]
            yield MetricFamily(family.name, family.type, family.documentation, samples)
