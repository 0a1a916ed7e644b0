"""Puts a select service together: its workers, its reservations, its table of routes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import zmq.asyncio

from dynamo.frontend.openapi import ApiPages
from dynamo.frontend.refusals import Answering
from dynamo.frontend.requests import decode_body
from dynamo.frontend.routes import Access, Route, install
from dynamo.frontend.security import create_security, current_identity
from dynamo.frontend.select.answers import overlap_scores, potential_loads, selection
from dynamo.frontend.select.requests import ReserveRequest, SelectRequest, prompt_tokens, route_request
from dynamo.frontend.select.reservations import Reservation, Reservations
from dynamo.frontend.select.settings import SelectSettings
from dynamo.frontend.select.workers import WorkerPool, WorkerRegistration, read_workers_file
from dynamo.frontend.settings import FrontendSettings
from dynamo.plugins import plugins
from dynamo.preprocessor import TextModel
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.metrics import RouterMetrics
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings
from dynamo.router.shadow import shadow_policies
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.http import Exchange, HttpLimits, HttpServer
from dynamo.runtime.tasks import Tasks
from dynamo.runtime.telemetry import METRICS_CONTENT_TYPE, render_metrics

__all__ = ["SelectService"]

_SWEEP_SECONDS = 1.0


class SelectService:
    """One process.

    Raises:
        ConfigError: the router mode, the API keys, a tokenizer or the workers file cannot be used.
    """

    def __init__(self, settings: SelectSettings, router: RouterSettings, runtime: DistributedRuntime) -> None:
        self._settings = settings
        self._router = router
        self._runtime = runtime
        self._metrics = RouterMetrics(runtime.metrics)
        policy_for_mode(router.router_mode, plugins(), router)
        shadow_policies(router, plugins())
        self._texts = _load_tokenizers(settings)
        self._preset = read_workers_file(Path(settings.workers_file)) if settings.workers_file else []
        self._zmq = zmq.asyncio.Context()
        self.pool = WorkerPool(self._make_table, self._zmq, max_workers=settings.max_workers)
        self.reservations = Reservations(settings.max_reservations)
        self._tasks = Tasks()
        self.server = HttpServer(HttpLimits(body_bytes=settings.http_body_limit_mib << 20))
        keys = FrontendSettings(
            api_key=settings.api_key,
            api_keys=settings.api_keys,
            api_key_file=settings.api_key_file,
            rate_limit_store="memory",
        )
        self._security = create_security(keys, runtime.settings.state_directory())
        install(self.server, self._routes(), self._security, None)

    async def run(self) -> None:
        """Serve until the runtime stops.

        Raises:
            CannotConnect: the port is taken.
            InvalidRequest: a worker of the file has an endpoint that cannot be used.
        """
        settings = self._settings
        watch = self._security.watch if self._security is not None else None
        follow = asyncio.ensure_future(watch.follow(2.0)) if watch is not None else None
        sweeping = asyncio.ensure_future(self._sweep())
        try:
            for registration in self._preset:
                await self.pool.put(registration)
            await self.server.listen(settings.http_host, settings.http_port, flag="--http-port")
            await self._runtime.stopping.wait()
        finally:
            for task in filter(None, (follow, sweeping)):
                task.cancel()
            await self._tasks.cancel()
            await self.server.close()
            await self.pool.close()
            self._zmq.term()
            if self._security is not None:
                self._security.close()

    # Route handlers

    def select(self, exchange: Exchange) -> None:
        """Which worker a request should go to; nothing is booked."""
        request = decode_body(exchange.body, SelectRequest)

        def answer(table: CandidateTable, facts: RouteRequest) -> None:
            decision = table.decide(facts, time.monotonic())
            exchange.respond_json(200, selection(decision, self.pool, explain=request.explain))

        self._with_prompt(exchange, request, answer)

    def reserve(self, exchange: Exchange) -> None:
        """The same, and the request counts as the worker's load until the reservation ends."""
        request = decode_body(exchange.body, ReserveRequest)
        reservation_id = request.reservation_id or uuid.uuid4().hex

        def answer(table: CandidateTable, facts: RouteRequest) -> None:
            now = time.monotonic()
            self.reservations.check(reservation_id)
            route, decision = table.reserve(facts, now)
            seconds = min(request.ttl_seconds or self._settings.reservation_seconds, self._settings.reservation_seconds)
            self.reservations.add(reservation_id, Reservation(route, current_identity().name, now + seconds))
            body = selection(decision, self.pool, explain=request.explain)
            exchange.respond_json(200, {**body, "reservation_id": reservation_id, "expires_in_seconds": seconds})

        self._with_prompt(exchange, request, answer)

    def overlap(self, exchange: Exchange) -> None:
        """Blocks of a prompt that each worker holds."""
        self._describe(exchange, overlap_scores)

    def potential(self, exchange: Exchange) -> None:
        """The load that each worker would have with a prompt."""
        self._describe(exchange, potential_loads)

    def prefill_complete(self, exchange: Exchange) -> None:
        """The first token of a reserved request came."""
        found = self.reservations.get(exchange.params, current_identity().name)
        found.route.answered(time.monotonic())
        exchange.respond_json(200, {"reservation_id": exchange.params})

    def end_reservation(self, exchange: Exchange) -> None:
        """A reserved request is over, however."""
        self.reservations.end(exchange.params, current_identity().name)
        exchange.respond_json(200, {"reservation_id": exchange.params})

    def register(self, exchange: Exchange) -> None:
        """Add a worker, or replace the one of its name."""
        registration = decode_body(exchange.body, WorkerRegistration)

        async def put() -> None:
            exchange.respond_json(200, (await self.pool.put(registration)).to_json())

        self._spawn(exchange, put())

    def deregister(self, exchange: Exchange) -> None:
        """Forget a worker; its reservations stay until they end."""
        name = self.pool.get(exchange.params).registration.worker_id

        async def remove() -> None:
            await self.pool.remove(name)
            exchange.respond_json(200, {"worker_id": name})

        self._spawn(exchange, remove())

    def workers(self, exchange: Exchange) -> None:
        """All workers, with what came of their KV events."""
        exchange.respond_json(200, {"workers": [worker.to_json() for worker in self.pool.all()]})

    def worker(self, exchange: Exchange) -> None:
        """One worker."""
        exchange.respond_json(200, self.pool.get(exchange.params).to_json())

    def loads(self, exchange: Exchange) -> None:
        """What every worker has been given and has not finished."""
        loads = [
            {
                "worker_id": self.pool.of(candidate.key).registration.worker_id,
                "dp_rank": candidate.key.dp_rank,
                "model": model,
                "active_requests": candidate.active_requests,
                "active_prefill_tokens": candidate.kv.active.prefill_tokens if candidate.kv is not None else None,
                "active_decode_blocks": candidate.kv.active.decode_blocks if candidate.kv is not None else None,
            }
            for model, table in sorted(self.pool.tables().items())
            for candidate in table.candidates()
        ]
        counts = {"open": len(self.reservations), "expired": self.reservations.expired}
        exchange.respond_json(200, {"workers": loads, "reservations": counts})

    def ready(self, exchange: Exchange) -> None:
        """Whether there is a worker to choose."""
        status, text = (200, "ready") if len(self.pool) else (503, "no worker is registered")
        exchange.respond_json(status, {"status": text})

    def _routes(self) -> list[Route]:
        free, one, worker = Access.OPEN, "/reservations/{reservation}", "/workers/{worker}"

        def health(exchange: Exchange) -> None:
            exchange.respond_json(200, {"status": "healthy"})

        def metrics(exchange: Exchange) -> None:
            exchange.respond(200, render_metrics(self._runtime.metrics), METRICS_CONTENT_TYPE)

        metered, admin = Access.METERED, Access.ADMIN
        routes = [
            Route("POST", "/select", self.select, "Choose a worker.", metered, SelectRequest),
            Route("POST", "/select_and_reserve", self.reserve, "Choose and book.", metered, ReserveRequest),
            Route("POST", f"{one}/prefill_complete", self.prefill_complete, "The first token came."),
            Route("DELETE", one, self.end_reservation, "The request is over."),
            Route("POST", "/overlap_scores", self.overlap, "Cached blocks by worker.", request=SelectRequest),
            Route("POST", "/potential_loads", self.potential, "Loads with this prompt.", request=SelectRequest),
            Route("GET", "/loads", self.loads, "Loads by worker."),
            Route("GET", "/workers", self.workers, "All workers."),
            # Registering makes this process connect to an address of the client's.
            Route("POST", "/workers", self.register, "Add or replace a worker.", admin, WorkerRegistration),
            Route("GET", worker, self.worker, "One worker."),
            Route("DELETE", worker, self.deregister, "Forget a worker.", admin),
            Route("GET", "/health", health, "Whether this process answers.", free),
            Route("GET", "/ready", self.ready, "Whether there is a worker to choose.", free),
            Route("GET", "/metrics", metrics, "Metrics.", free, response=METRICS_CONTENT_TYPE),
        ]
        return ApiPages().added(routes)

    def _describe(self, exchange: Exchange, describe: Callable[..., dict[str, Any]]) -> None:
        request = decode_body(exchange.body, SelectRequest)

        def answer(table: CandidateTable, facts: RouteRequest) -> None:
            exchange.respond_json(200, describe(table.decide(facts, time.monotonic()), self.pool))

        self._with_prompt(exchange, request, answer)

    def _with_prompt(
        self, exchange: Exchange, request: SelectRequest, answer: Callable[[CandidateTable, RouteRequest], None]
    ) -> None:
        """Call `answer` once the prompt is known in tokens."""
        model, table = self.pool.table(request.model)
        excluded = frozenset(int(self.pool.get(name).instance_id) for name in request.excluded_workers)

        async def tokenize() -> None:
            tokens = await prompt_tokens(request, model, self._texts)
            tenant = current_identity().name
            facts = route_request(request, uuid.uuid4().hex, model, tokens, excluded=excluded, tenant=tenant)
            answer(table, facts)

        self._spawn(exchange, tokenize())

    def _spawn(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        async def answered() -> None:
            with Answering(exchange, f"{exchange.method} {exchange.path}"):
                await work

        self._tasks.spawn(answered())

    def _make_table(self, model: str) -> CandidateTable:
        return CandidateTable(
            policy_for_mode(self._router.router_mode, plugins(), self._router),
            self._router,
            metrics=self._metrics.of(model),
            shadows=shadow_policies(self._router, plugins()),
            model=model,
        )

    async def _sweep(self) -> None:
        while True:
            self.reservations.expire(time.monotonic())
            await asyncio.sleep(_SWEEP_SECONDS)


def _load_tokenizers(settings: SelectSettings) -> Mapping[str, TextModel]:
    found = {}
    for text in settings.tokenizer:
        name, _, path = text.rpartition("=")
        loaded = TextModel.from_directory(path, name=name)
        found[loaded.name] = loaded
    return found
