"""Puts a frontend together: its parts, its table of routes, its start and its stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from dynamo.frontend.access_log import AccessLog
from dynamo.frontend.artifact_fetch import ArtifactFetcher
from dynamo.frontend.batches import BatchService
from dynamo.frontend.busy_pages import BusyPages
from dynamo.frontend.embedding_calls import EmbeddingCalls
from dynamo.frontend.embeddings import EmbeddingRequest, Embeddings
from dynamo.frontend.messages import MessageRequest, Messages, TokenCountRequest
from dynamo.frontend.messages import render_error as message_error
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.model_pages import ModelPages
from dynamo.frontend.models import ServedModels
from dynamo.frontend.openapi import ApiPages
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.probes import Probes
from dynamo.frontend.remote_settings import follow_router_settings
from dynamo.frontend.replicas import Replicas
from dynamo.frontend.request_log import RequestLog
from dynamo.frontend.requests import ChatRequest, CompletionRequest
from dynamo.frontend.responses import ResponseRequest, Responses
from dynamo.frontend.responses import render_error as response_error
from dynamo.frontend.routes import Access, Route, install
from dynamo.frontend.routing_pages import RoutingPages
from dynamo.frontend.security import Cors, TlsFiles, create_security
from dynamo.frontend.serving_page import ServingPage
from dynamo.frontend.settings import FrontendSettings
from dynamo.frontend.shared_metrics import SharedMetrics
from dynamo.frontend.sqlite_store import SqliteStore
from dynamo.frontend.store import FrontendStore, NoStore
from dynamo.frontend.tokenization import DetokenizeRequest, Tokenization, TokenizeRequest
from dynamo.plugins import plugins
from dynamo.preprocessor.artifacts import ArtifactCache
from dynamo.router.candidates import CandidateTable
from dynamo.router.explain import DecisionLog
from dynamo.router.metrics import RouterMetrics
from dynamo.router.policy import policy_for_mode
from dynamo.router.queue_metrics import QueueMetrics
from dynamo.router.settings import RouterSettings
from dynamo.router.shadow import shadow_policies
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.http import HttpLimits, HttpServer, RouteHandler
from dynamo.runtime.system_access import system_access
from dynamo.runtime.telemetry import METRICS_CONTENT_TYPE

__all__ = ["Frontend"]

logger = logging.getLogger(__name__)

#: What does not come within this time must not keep the frontend from answering probes.
_READ_MODELS_SECONDS = 2.0


class Frontend:
    """One frontend process.

    Raises:
        ConfigError: the router mode, the API keys, the certificate or the access log cannot be used.
    """

    def __init__(self, settings: FrontendSettings, router: RouterSettings, runtime: DistributedRuntime) -> None:
        self._settings = settings
        self._runtime = runtime
        # Made once here so that an unknown mode stops the start, not the first request.
        policy = policy_for_mode(router.router_mode, plugins(), router)
        shadows = shadow_policies(router, plugins())
        needs_facts = policy.needs_facts or any(shadow.policy.needs_facts for shadow in shadows)
        # The queue looks at what workers have to compute, whatever the mode.
        self._measures = needs_facts or router.router_queue_threshold is not None
        self._follows_caches = router.router_use_kv_events and self._measures
        state_directory = runtime.settings.state_directory()
        store_directory = Path(settings.store_dir or state_directory / "frontend")
        cache = ArtifactCache(Path(settings.artifact_cache_dir or state_directory / "artifacts"))
        fetcher = ArtifactFetcher(runtime.request_plane, cache)
        self._router = router
        self._router_metrics = RouterMetrics(runtime.metrics)
        # A key file may name an admin, now or after a change.
        explained = router.explain or bool(settings.api_key_file)
        self._decisions = DecisionLog(router.router_decision_log_size) if explained else None
        self._queue_metrics = QueueMetrics(runtime.metrics)
        self.models = ServedModels(fetcher, self._candidates, settings.tokenizer_cache_mib << 20)
        self._replicas: Replicas | None = None
        # Also for the queue: it looks at what all frontends have sent.
        looks_at_load = policy.looks_at_load or router.router_queue_threshold is not None
        if router.router_replica_sync and looks_at_load and runtime.event_plane is not None:
            self._replicas = Replicas(runtime, runtime.event_plane, self.models)
        self.server = HttpServer(HttpLimits(body_bytes=settings.http_body_limit_mib << 20))
        self._security = create_security(settings, state_directory)
        self._busy = BusyPages(state_directory / "frontend" / "busy-thresholds.json", self.models)
        self._tls = TlsFiles.from_settings(settings)
        metrics = FrontendMetrics(runtime.metrics)
        self._shared_metrics: SharedMetrics | None = None
        if settings.http_reuse_port and settings.http_port:
            directory = state_directory / "frontend" / "metrics" / str(settings.http_port)
            self._shared_metrics = SharedMetrics(runtime.metrics, directory)
        self._access_log = AccessLog(settings.access_log) if settings.access_log else None
        metrics.access_log = self._access_log
        self._request_log = (
            RequestLog(settings.request_log, texts=settings.request_log_texts) if settings.request_log else None
        )
        self._pipeline = Pipeline(
            self.models, runtime.request_plane, metrics, runtime.tracing, settings, self._request_log
        )
        self._responses = Responses(self._pipeline, metrics, _create_store(settings, store_directory), settings)
        self._messages = Messages(self._pipeline, self.models, metrics, settings)
        calls = EmbeddingCalls(runtime.request_plane, settings.migration_limit)
        self._embeddings = Embeddings(self.models, calls, metrics, runtime.tracing, settings)
        self._tokenization = Tokenization(self.models, metrics, strict=settings.strict)
        self._batches: BatchService | None = None
        if settings.file_store_mib:
            self._batches = BatchService(settings, store_directory, self.models, metrics, self._security)
            # A form is a little larger than its file.
            self.server.body_limits["/v1/files"] = (settings.file_limit_mib << 20) + (64 << 10)
        cors = Cors(settings.cors_allow_origins) if settings.cors_allow_origins else None
        self._table = self._routes()
        install(self.server, self._table, self._security, cors)

    async def run(self) -> None:
        """Serve until the runtime stops, then let open responses end.

        Raises:
            CannotConnect: the HTTP port is taken.
        """
        runtime, settings = self._runtime, self._settings
        runtime.health.require("discovery", self._discovery_state)
        tls = self._tls.context if self._tls is not None else None
        runtime.instances.listen(self.models.on_instance)
        await self.models.feeds.subscribe(runtime, caches=self._follows_caches)
        await self._read_models()
        port = await self.server.listen(
            settings.http_host, settings.http_port, tls=tls, reuse_port=settings.http_reuse_port, flag="--http-port"
        )
        if runtime.system_server is not None:
            access, keyed = system_access(runtime.settings), self._security is not None
            ServingPage(self.models, settings, access, asks_for_key=keyed).install(runtime.system_server)
        logger.info("listening on %s://%s:%d", "http" if tls is None else "https", settings.http_host, port)
        if self._batches is not None:
            self._batches.start(self._table)
        if self._shared_metrics is not None:
            self._shared_metrics.start()
        remote = follow_router_settings(runtime.settings, self._router, self._reconfigure, measures=self._measures)
        watches = [asyncio.ensure_future(watch) for watch in self._watches()]
        try:
            await runtime.stopping.wait()
        finally:
            for task in watches:
                task.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            if remote is not None:
                await remote.close()
            await self._close()

    async def _read_models(self) -> None:
        """Wait for the models that are announced already: a client who came earlier would be told to come again."""
        give_up = time.monotonic() + _READ_MODELS_SECONDS
        while self._discovery_state() is not None and not self._runtime.stopping.is_set():
            if time.monotonic() >= give_up:
                return
            await asyncio.sleep(0.01)

    async def _close(self) -> None:
        if self._batches is not None:
            # First: another process goes on with them while this one lets live requests end.
            await self._batches.stop_work()
        self.server.stop_accepting()
        # Another frontend may have room long before this one has, whose time is limited.
        self.models.drain()
        await self.server.close(self._settings.drain_grace_seconds)
        for part in (
            self._pipeline,
            self._responses,
            self._messages,
            self._embeddings,
            self._tokenization,
            self.models,
        ):
            await part.close()
        if self._batches is not None:
            await self._batches.close()
        if self._shared_metrics is not None:
            await self._shared_metrics.close()
        if self._security is not None:
            self._security.close()
        for log in (self._access_log, self._request_log):
            if log is not None:
                await asyncio.to_thread(log.close)

    def _candidates(self, model: str) -> CandidateTable:
        table = CandidateTable(
            policy_for_mode(self._router.router_mode, plugins(), self._router),
            self._router,
            plane=self._runtime.request_plane,
            metrics=self._router_metrics.of(model),
            decisions=self._decisions,
            shadows=shadow_policies(self._router, plugins()),
            model=model,
            replicas=self._replicas.sync if self._replicas is not None else None,
            queue_metrics=self._queue_metrics.of(model),
            measures=self._measures,
        )
        table.set_thresholds(self._busy.of(model))
        return table

    def _reconfigure(self, settings: RouterSettings) -> None:
        self._router = settings
        self.models.configure(
            lambda table: table.configure(policy_for_mode(settings.router_mode, plugins(), settings), settings)
        )

    def _watches(self) -> list[Coroutine[Any, Any, None]]:
        found = [self._busy.watch, self._security.watch if self._security is not None else None]
        found += [self._tls.watch if self._tls is not None else None]
        watches = [watch.follow(self._settings.security_reload_seconds) for watch in found if watch is not None]
        return watches + ([self._replicas.run()] if self._replicas is not None else [])

    def _routes(self) -> list[Route]:
        models, tokens = ModelPages(self.models), self._tokenization
        private = self._security is not None
        probes = Probes(self._runtime, self.models, private=private, shared=self._shared_metrics)
        routing = self._routing_pages()
        chat: RouteHandler = self._pipeline.chat
        texts: RouteHandler = self._pipeline.completions
        embeddings = self._embeddings.handle
        metered, free = Access.METERED, Access.OPEN
        metrics = Access.KEY if self._settings.metrics_auth else free
        routes = [
            Route("POST", "/v1/chat/completions", chat, "Answer a chat.", metered, ChatRequest, streams=True),
            Route("POST", "/v1/completions", texts, "Go on with a text.", metered, CompletionRequest, streams=True),
            Route("POST", "/v1/embeddings", embeddings, "Vectors of texts.", metered, EmbeddingRequest),
            Route("POST", "/tokenize", tokens.tokenize, "Text or chat to token ids.", request=TokenizeRequest),
            Route("POST", "/detokenize", tokens.detokenize, "Token ids to text.", request=DetokenizeRequest),
            Route("GET", "/v1/models", models.every, "Models and aliases that are ready."),
            Route("GET", "/v1/models/{model}", models.one, "One model."),
            Route("GET", "/v1/models/{model}/ready", models.ready, "Whether a model can be used now."),
            Route("GET", "/health", probes.health, "Whether this frontend is ready.", free),
            Route("GET", "/live", probes.live, "Whether this process answers.", free),
            Route("GET", "/metrics", probes.metrics, "Metrics.", metrics, response=METRICS_CONTENT_TYPE),
        ]
        routes += self._response_routes() + self._message_routes() + self._busy.routes()
        if self._batches is not None:
            routes += self._batches.routes()
        if routing is not None:
            routes = [r._replace(handler=routing.explained(r.handler)) if r.streams else r for r in routes]
            routes += [
                Route("GET", "/debug/routing", routing.every, "The last routing decisions, newest first."),
                Route("GET", "/debug/routing/{request_id}", routing.one, "Why a request went where it went."),
            ]
        return ApiPages().added(routes)

    def _response_routes(self) -> list[Route]:
        served, one = self._responses, "/v1/responses/{response}"
        routes = [
            Route("POST", "/v1/responses", served.create, "Answer.", Access.METERED, ResponseRequest, streams=True),
            Route("GET", one, served.fetch, "A response that was kept."),
            Route("DELETE", one, served.delete, "Forget a response."),
            Route("GET", f"{one}/input_items", served.input_items, "The conversation before a response."),
        ]
        return [route._replace(render_error=response_error) for route in routes]

    def _message_routes(self) -> list[Route]:
        path, answer, count = "/v1/messages", self._messages.create, self._messages.count_tokens
        routes = [
            Route("POST", path, answer, "Answer, as Anthropic.", Access.METERED, MessageRequest, streams=True),
            Route("POST", f"{path}/count_tokens", count, "Length of a prompt.", request=TokenCountRequest),
        ]
        return [route._replace(render_error=message_error) for route in routes]

    def _routing_pages(self) -> RoutingPages | None:
        if self._decisions is None:
            return None
        keyed = self._security is not None
        return RoutingPages(self._decisions, self.models.tables, explain=self._router.explain, keyed=keyed)

    def _discovery_state(self) -> str | None:
        if not self._runtime.instances.synced.is_set():
            return "discovery has not been read yet"
        return self.models.state()


def _create_store(settings: FrontendSettings, directory: Path) -> FrontendStore:
    """The store of responses; raises ConfigError when its file cannot be used."""
    if not settings.response_store_entries:
        return NoStore()
    path = directory / "responses.sqlite"
    return SqliteStore(path, settings.response_store_entries, settings.response_store_mib << 20)
