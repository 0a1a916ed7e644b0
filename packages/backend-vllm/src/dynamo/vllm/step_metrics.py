"""vLLM's Prometheus metrics at a fraction of their cost; `dynamo.vllm.load` gives the class to vLLM.

vLLM sets twenty gauges and counters after every step, whatever it did. Most steps only make one more token per
request: they are held back and entered together, when somebody looks or a step comes that did more. All values are
those that vLLM would show; measured with one stream, this was 5 % of the CPU of the worker's process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

__all__ = ["step_metrics_class"]

#: Half a second of the fastest engine.
_HELD_STEPS = 256


class _Held:
    """Steps of one engine that have not been entered."""

    def __init__(self) -> None:
        self.latest: SchedulerStats | None = None
        self.tokens: list[int] = []
        """Made in each step."""
        self.gaps: list[float] = []
        """Seconds between tokens of a request."""


def step_metrics_class(
    made: Callable[[Callable[[], None], VllmConfig, Sequence[int]], None],
    recorded: Callable[[int, SchedulerStats | None, IterationStats | None], None],
) -> Callable[..., Any]:
    """A class for vLLM's ``stat_loggers``. Imports vLLM.

    `made` gets what enters the steps that are held back, the engine's configuration, and the engine indexes; `recorded`
    hears of every step.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class Logger(PrometheusStatLogger):  # type: ignore[misc,unused-ignore]  # Any where vLLM is not installed
        def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
            super().__init__(vllm_config, engine_indexes)
            self._held = {index: _Held() for index in self.engine_indexes}
            made(self._flush, vllm_config, self.engine_indexes)

        def record(
            self,
            scheduler_stats: SchedulerStats | None,
            iteration_stats: IterationStats | None,
            mm_cache_stats: MultiModalCacheStats | None = None,
            engine_idx: int = 0,
        ) -> None:
            recorded(engine_idx, scheduler_stats, iteration_stats)
            held = self._held[engine_idx]
            if mm_cache_stats is None and _only_decoded(scheduler_stats, iteration_stats):
                held.latest = scheduler_stats or held.latest
                if iteration_stats is not None:
                    held.tokens.append(iteration_stats.num_generation_tokens)
                    held.gaps += iteration_stats.inter_token_latencies_iter
                if len(held.tokens) < _HELD_STEPS:
                    return
                scheduler_stats, iteration_stats = held.latest, None
            self._enter(engine_idx, held)
            held.latest = None if scheduler_stats is not None else held.latest
            super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

        def _flush(self) -> None:
            for index, held in self._held.items():
                self._enter(index, held)
                if held.latest is not None:
                    super().record(held.latest, None, None, index)
                    held.latest = None

        def _enter(self, index: int, held: _Held) -> None:
            """All but the gauges, which only the latest step sets."""
            if held.tokens:
                self.counter_generation_tokens[index].inc(sum(held.tokens))
                _observe(self.histogram_iteration_tokens[index], held.tokens)
                _observe(self.histogram_inter_token_latency[index], held.gaps)
                held.tokens, held.gaps = [], []

    return Logger


def _only_decoded(step: SchedulerStats | None, iteration: IterationStats | None) -> bool:
    """Whether no request came, ended or was preempted, and no part of vLLM has numbers of its own."""
    if step is not None and (
        step.prefix_cache_stats.queries
        or step.kv_cache_eviction_events
        or step.connector_prefix_cache_stats is not None
        or step.spec_decoding_stats is not None
        or step.kv_connector_stats is not None
        or step.ec_connector_stats is not None
        or step.perf_stats is not None
    ):
        return False
    return iteration is None or not (
        iteration.prompt_token_stats.total
        or iteration.time_to_first_tokens_iter
        or iteration.finished_requests
        or iteration.num_preempted_reqs
    )


def _observe(histogram: Any, values: Sequence[float]) -> None:
    for value in values:
        histogram.observe(value)
