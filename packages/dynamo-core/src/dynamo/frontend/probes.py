"""``GET /health``, ``/live`` and ``/metrics`` on the port that clients use."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from dynamo.errors import EngineError
from dynamo.frontend.models import ServedModels
from dynamo.frontend.replicas import REPLICA_ENDPOINT
from dynamo.frontend.shared_metrics import SharedMetrics
from dynamo.protocols.addressing import format_instance_id
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.http import Exchange
from dynamo.runtime.tasks import Tasks
from dynamo.runtime.telemetry import METRICS_CONTENT_TYPE, render_metrics

__all__ = ["Probes"]


class Probes:
    """The route handlers. With `private` models and workers are not named: a probe sends no API key.

    `shared` has the metrics of the frontends beside this one; None: there are none.
    """

    def __init__(
        self, runtime: DistributedRuntime, models: ServedModels, *, private: bool, shared: SharedMetrics | None = None
    ) -> None:
        self._shared = shared
        self._tasks = Tasks()
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
        if self._shared is None:
            exchange.respond(200, render_metrics(self._runtime.metrics), METRICS_CONTENT_TYPE)
            return
        self._tasks.spawn(self._all_metrics(exchange, self._shared))

    async def _all_metrics(self, exchange: Exchange, shared: SharedMetrics) -> None:
        try:
            text = await asyncio.to_thread(shared.render)
        except (OSError, msgspec.MsgspecError) as error:
            # A part of the counts would look like a restart.
            exchange.respond_error(EngineError(f"the metrics of the other frontends cannot be read: {error}"))
        else:
            exchange.respond(200, text, METRICS_CONTENT_TYPE)

    def _instances(self) -> list[dict[str, Any]]:
        return [
            {
                "instance_id": format_instance_id(record.instance_id),
                "endpoint": str(record.address),
                "model": record.card.model if record.card else None,
            }
            for record in self._runtime.instances.all()
            if record.endpoint != REPLICA_ENDPOINT
        ]
