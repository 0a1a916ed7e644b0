"""What a worker shows of its engine: the load, and the engine's own metrics under the worker's labels."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from dynamo.protocols.engine import MetricFamily, MetricSample
from dynamo.protocols.load import EngineLoad
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings
from dynamo.runtime.telemetry import render_metrics
from dynamo.worker.metrics import WorkerMetrics
from dynamo.worker.settings import WorkerSettings


class Measured:
    """An engine that only has numbers."""

    def __init__(self, loads, families=()):
        self.loads = loads
        self.families = families

    def load(self):
        return self.loads

    def metrics(self):
        return self.families


async def scrape(engine) -> dict[str, list[tuple[dict[str, str], float]]]:
    runtime = DistributedRuntime(RuntimeSettings(discovery_backend="memory"))
    WorkerMetrics(runtime, WorkerSettings(), engine)
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    text = render_metrics(runtime.metrics).decode()
    await runtime.close()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


async def test_prefix_cache_hits_per_rank():
    loads = [
        EngineLoad(dp_rank=0, prefix_cache_queried_tokens=96, prefix_cache_hit_tokens=64),
        EngineLoad(dp_rank=1, prefix_cache_queried_tokens=32),
    ]
    samples = await scrape(Measured(loads))
    hits = {labels["dp_rank"]: value for labels, value in samples["dynamo_component_prefix_cache_hit_tokens_total"]}
    assert hits == {"0": 64, "1": 0}


async def test_engines_that_do_not_count_hits_show_none():
    samples = await scrape(Measured([EngineLoad(running_requests=2)]))
    assert samples["dynamo_component_running_requests"][0][1] == 2
    assert not [name for name in samples if "prefix_cache" in name]


async def test_the_engines_own_metrics_keep_name_and_labels():
    histogram = MetricFamily(
        "vllm:ttft_seconds",
        "histogram",
        "Time to first token.",
        [
            MetricSample("vllm:ttft_seconds_bucket", {"engine": "0", "le": "0.1"}, 3),
            MetricSample("vllm:ttft_seconds_bucket", {"engine": "0", "le": "+Inf"}, 4),
            MetricSample("vllm:ttft_seconds_count", {"engine": "0"}, 4),
            MetricSample("vllm:ttft_seconds_sum", {"engine": "0"}, 0.5),
        ],
    )
    samples = await scrape(Measured([], [histogram]))
    [(labels, value)] = samples["vllm:ttft_seconds_count"]
    assert value == 4
    assert labels["engine"] == "0"
    assert {"dynamo_namespace", "dynamo_component", "dynamo_endpoint", "worker_id"} < labels.keys()
    assert [labels["le"] for labels, _ in samples["vllm:ttft_seconds_bucket"]] == ["0.1", "+Inf"]
