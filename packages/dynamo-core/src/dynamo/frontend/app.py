"""The routes of the frontend, and its start and stop."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from dynamo.frontend.access_log import AccessLog
from dynamo.frontend.artifact_fetch import ArtifactFetcher
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.models import ServedModel, ServedModels
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.settings import FrontendSettings
from dynamo.plugins import plugins
from dynamo.preprocessor.artifacts import ArtifactCache
from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.load import LOAD_SUBJECT
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.http import Exchange, HttpLimits, HttpServer
from dynamo.runtime.telemetry import METRICS_CONTENT_TYPE, render_metrics

__all__ = ["Frontend"]

logger = logging.getLogger(__name__)


class Frontend:
    """One frontend process."""

    def __init__(self, settings: FrontendSettings, router: RouterSettings, runtime: DistributedRuntime) -> None:
        self._settings = settings
        self._runtime = runtime
        # Made once here so that an unknown mode stops the start, not the first request.
        policy_for_mode(router.router_mode, plugins())
        cache = ArtifactCache(Path(settings.artifact_cache_dir or runtime.settings.state_directory() / "artifacts"))
        fetcher = ArtifactFetcher(runtime.request_plane, cache)
        self.models = ServedModels(
            fetcher, lambda: CandidateTable(policy_for_mode(router.router_mode, plugins()), router)
        )
        self.server = HttpServer(HttpLimits(body_bytes=settings.http_body_limit_mib << 20))
        metrics = FrontendMetrics(runtime.metrics)
        self._access_log = AccessLog(settings.access_log) if settings.access_log else None
        metrics.access_log = self._access_log
        self._pipeline = Pipeline(self.models, runtime.request_plane, metrics, runtime.tracing, settings)
        self._routes()

    async def run(self) -> None:
        """Serve until the runtime stops, then let open responses end.

        Raises:
            CannotConnect: the HTTP port is taken.
        """
        runtime, settings = self._runtime, self._settings
        runtime.health.require("discovery", self._discovery_state)
        port = await self.server.listen(settings.http_host, settings.http_port, flag="--http-port")
        runtime.instances.listen(self.models.on_instance)
        if runtime.event_plane is not None:
            await runtime.event_plane.subscribe(LOAD_SUBJECT, self.models.on_load)
        logger.info("listening on http://%s:%d", settings.http_host, port)
        try:
            await runtime.stopping.wait()
        finally:
            await self.server.close(settings.drain_grace_seconds)
            await self._pipeline.close()
            await self.models.close()
            if self._access_log is not None:
                await asyncio.to_thread(self._access_log.close)

    def _routes(self) -> None:
        server = self.server
        server.route("POST", "/v1/chat/completions", self._pipeline.chat)
        server.route("POST", "/v1/completions", self._pipeline.completions)
        server.route("GET", "/v1/models", self._list_models)
        server.route("GET", "/v1/models/*", self._show_model)
        server.route("GET", "/health", self._health)
        server.route("GET", "/live", self._live)
        server.route("GET", "/metrics", self._metrics)

    def _list_models(self, exchange: Exchange) -> None:
        bodies = [_model_body(name, model) for name, model in self.models.names().items()]
        exchange.respond_json(200, {"object": "list", "data": bodies})

    def _show_model(self, exchange: Exchange) -> None:
        exchange.respond_json(200, _model_body(exchange.params, self.models.get(exchange.params)))

    def _health(self, exchange: Exchange) -> None:
        """Ready once discovery is read and its models are loaded; without any model it answers, with 404 or 503."""
        status, report = self._runtime.health.report()
        instances = [
            {
                "instance_id": format_instance_id(record.instance_id),
                "endpoint": str(record.address),
                "model": record.card.model if record.card else None,
            }
            for record in self._runtime.instances.all()
        ]
        models = [model.name for model in self.models.ready()]
        exchange.respond_json(
            status,
            {**report, "status": "healthy" if status == 200 else "unhealthy", "models": models, "instances": instances},
        )

    def _live(self, exchange: Exchange) -> None:
        exchange.respond_json(200, {"status": "live"})

    def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, render_metrics(self._runtime.metrics), METRICS_CONTENT_TYPE)

    def _discovery_state(self) -> str | None:
        if not self._runtime.instances.synced.is_set():
            return "discovery has not been read yet"
        return self.models.state()


def _model_body(name: str, model: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created_unix_seconds,
        "owned_by": model.card.backend or "dynamo",
        "root": model.name,
        "max_model_len": model.context_length_tokens,
    }
