"""``GET /health``, ``/live`` and ``/metrics`` on the port that clients use."""

from __future__ import annotations

from typing import Any

from dynamo.frontend.models import ServedModels
from dynamo.protocols.addressing import format_instance_id
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.http import Exchange
from dynamo.runtime.telemetry import METRICS_CONTENT_TYPE, render_metrics

__all__ = ["Probes"]


class Probes:
    """The route handlers. With `private` models and workers are not named: a probe sends no API key."""

    def __init__(self, runtime: DistributedRuntime, models: ServedModels, *, private: bool) -> None:
        self._runtime = runtime
        self._models = models
        self._private = private

    def health(self, exchange: Exchange) -> None:
        """Ready once discovery is read and its models are loaded; without any model it answers, with 404 or 503."""
        status, report = self._runtime.health.report()
        body: dict[str, Any] = {"status": "healthy" if status == 200 else "unhealthy"}
        if not self._private:
            models = [model.name for model in self._models.ready()]
            body = {**report, **body, "models": models, "instances": self._instances()}
        exchange.respond_json(status, body)

    def live(self, exchange: Exchange) -> None:
        """The process answers."""
        exchange.respond_json(200, {"status": "live"})

    def metrics(self, exchange: Exchange) -> None:
        """Prometheus' text format."""
        exchange.respond(200, render_metrics(self._runtime.metrics), METRICS_CONTENT_TYPE)

    def _instances(self) -> list[dict[str, Any]]:
        return [
            {
                "instance_id": format_instance_id(record.instance_id),
                "endpoint": str(record.address),
                "model": record.card.model if record.card else None,
            }
            for record in self._runtime.instances.all()
        ]
