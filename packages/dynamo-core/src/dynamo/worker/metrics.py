"""Metrics of a worker; the engine's load is read when somebody scrapes, not while it works."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.engine import LLMEngine, LoadSource
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
        self._tokens = Counter(
            "dynamo_component_output_tokens", "Tokens generated.", _LABELS, registry=registry
        ).labels(*labels)
        if isinstance(engine, LoadSource):
            registry.register(_LoadCollector(engine, labels))

    def count_output(self, output: LLMEngineOutput) -> None:
        """One output left the engine."""
        self._tokens.inc(len(output.token_ids))

    def count_request(self, *, cancelled: bool) -> None:
        """One request ended."""
        self._requests.inc()
        if cancelled:
            self._cancelled.inc()


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

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Called by the registry at each scrape."""
        loads = list(self._engine.load())
        for name, text in self._GAUGES:
            family = GaugeMetricFamily(f"dynamo_component_{name}", text, labels=[*_LABELS, "dp_rank"])
            for load in loads:
                family.add_metric([*self._labels, str(load.dp_rank)], getattr(load, name))
            yield family
