"""Metrics of a worker; the engine's load is read when somebody scrapes, not while it works."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.engine import LLMEngine, LoadSource, MetricsSource
from dynamo.protocols.llm import LLMEngineOutput
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.worker.settings import WorkerSettings

__all__ = ["WorkerMetrics"]

_LABELS = ["dynamo_namespace", "dynamo_component", "dynamo_endpoint", "worker_id"]


class WorkerMetrics:
    """Counters of one worker process."""

    def __init__(self, runtime: DistributedRuntime, settings: WorkerSettings, engine: LLMEngine) -> None:
        labels = [
            runtime.settings.namespace,
            settings.component,
            settings.endpoint,
            format_instance_id(runtime.instance_id),
        ]
        registry = runtime.metrics
        self._requests = Counter(
            "dynamo_component_requests", "Requests that ended.", _LABELS, registry=registry
        ).labels(*labels)
        self._cancelled = Counter(
            "dynamo_component_cancellation", "Requests that the caller cancelled.", _LABELS, registry=registry
        ).labels(*labels)
        self._tokens = _TokenCollector(labels)
        registry.register(self._tokens)
        if isinstance(engine, LoadSource):
            registry.register(_LoadCollector(engine, labels))
        if isinstance(engine, MetricsSource):
            registry.register(_EngineCollector(engine, dict(zip(_LABELS, labels, strict=True))))

    def count_output(self, output: LLMEngineOutput) -> None:
        """One output left the engine."""
        self._tokens.generated += len(output.token_ids)

    def count_request(self, *, cancelled: bool) -> None:
        """One request ended."""
        self._requests.inc()
        if cancelled:
            self._cancelled.inc()


class _TokenCollector(Collector):
    """A plain number until somebody scrapes: it changes with every token."""

    def __init__(self, labels: list[str]) -> None:
        self._labels = labels
        self.generated = 0

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        counter = CounterMetricFamily("dynamo_component_output_tokens", "Tokens generated.", labels=_LABELS)
        counter.add_metric(self._labels, self.generated)
        yield counter


class _LoadCollector(Collector):
    """Gauges made from the engine's load at the moment of the scrape."""

    _GAUGES = (
        ("waiting_requests", "Requests that wait for their first step."),
        ("running_requests", "Requests in the batch."),
        ("used_kv_blocks", "KV blocks that running requests hold."),
        ("cached_kv_blocks", "KV blocks that only the prefix cache holds."),
        ("total_kv_blocks", "KV blocks of the pool."),
    )

    def __init__(self, engine: LoadSource, labels: list[str]) -> None:
        self._engine = engine
        self._labels = labels

    _COUNTERS = (
        ("prefix_cache_queried_tokens", "Prompt tokens that were looked up in the prefix cache."),
        ("prefix_cache_hit_tokens", "Prompt tokens that were found in the prefix cache."),
    )

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        loads = list(self._engine.load())
        if any(load.prefix_cache_queried_tokens for load in loads):
            for name, text in self._COUNTERS:
                counter = CounterMetricFamily(f"dynamo_component_{name}", text, labels=[*_LABELS, "dp_rank"])
                for load in loads:
                    counter.add_metric([*self._labels, str(load.dp_rank)], getattr(load, name))
                yield counter
        for name, text in self._GAUGES:
            family = GaugeMetricFamily(f"dynamo_component_{name}", text, labels=[*_LABELS, "dp_rank"])
            for load in loads:
                family.add_metric([*self._labels, str(load.dp_rank)], getattr(load, name))
            yield family


class _EngineCollector(Collector):
    """The engine's own metrics, with the worker's labels beside the engine's."""

    def __init__(self, engine: MetricsSource, labels: dict[str, str]) -> None:
        self._engine = engine
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        for family in self._engine.metrics():
            metric = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                metric.add_sample(sample.name, {**sample.labels, **self._labels}, sample.value)
            yield metric
