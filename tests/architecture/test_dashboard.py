"""The Grafana dashboard asks only for metrics that frontends and workers export."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from dynamo.frontend.metrics import FrontendMetrics
from dynamo.plugins import plugins
from dynamo.protocols.engine import EngineOptions
from dynamo.router.queue_metrics import QueueMetrics
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings
from dynamo.runtime.telemetry import render_metrics
from dynamo.runtime.tracing import create_tracing
from dynamo.worker.metrics import WorkerMetrics
from dynamo.worker.settings import WorkerSettings

DASHBOARD = Path(__file__).parents[2] / "examples" / "observability" / "grafana-dashboard.json"
NAME = re.compile(r"\bdynamo_[a-z_]+")


async def exported_names(tmp_path) -> set[str]:
    registry = CollectorRegistry()
    request = FrontendMetrics(registry).begin("m", "e", "r", create_tracing("t", {}).span("s", {}, {}), stream=True)
    request.tokens(2)
    request.migrated()
    request.cancelled()
    request.end(200)
    queue = QueueMetrics(registry).of("m")
    queue.waited(1.0)
    queue.rejected("expired")
    queue.pending("tenant", 1, 1)
    settings = RuntimeSettings(discovery_backend="memory", event_plane="", state_dir=str(tmp_path))
    runtime = DistributedRuntime(settings)
    engine = plugins().engines.get("echo")(EngineOptions())
    WorkerMetrics(runtime, WorkerSettings(), engine)
    text = (render_metrics(registry) + render_metrics(runtime.metrics)).decode()
    await runtime.close()
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}


async def test_the_dashboard_uses_exported_names_only(tmp_path):
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    wanted = {name for expression in expressions for name in NAME.findall(expression)}
    assert len(wanted) >= 12
    assert wanted - await exported_names(tmp_path) == set()
