"""Hosts one engine: publishes its card, serves requests, and ends with it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from dynamo.errors import Cancelled, ConfigError, Draining, EngineShutdown, Overloaded, StreamIncomplete
from dynamo.preprocessor.artifacts import collect
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.engine import EngineConfig, EngineMonitor, KvEventSource, LLMEngine, LoadSource, LoraHost
from dynamo.protocols.kv_events import KV_EVENTS_SUBJECT, KV_SNAPSHOT_ENDPOINT, KvSnapshotRequest
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.model_card import ARTIFACTS_ENDPOINT, ArtifactRequest, ModelDeploymentCard, ModelType
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.server import closing, iterator_handler
from dynamo.runtime.system_access import system_access
from dynamo.worker.artifacts import ArtifactServer
from dynamo.worker.canary import Canary
from dynamo.worker.kv_publisher import KvEventPublisher
from dynamo.worker.load_publisher import publish_load
from dynamo.worker.lora_pages import LoraPages
from dynamo.worker.loras import LoraAdapters
from dynamo.worker.metrics import WorkerMetrics
from dynamo.worker.settings import WorkerSettings

__all__ = ["Worker", "model_card"]

logger = logging.getLogger(__name__)


class Worker:
    """One engine on one endpoint, from start to drained."""

    def __init__(
        self,
        engine: LLMEngine,
        backend: str,
        settings: WorkerSettings,
        runtime: DistributedRuntime,
        *,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._backend = backend
        self._settings = settings
        self._runtime = runtime
        self._on_ready = on_ready
        # Made before the engine loads: a wrong name must not cost the minutes that a large model takes.
        self._address = EndpointAddress.of(runtime.settings.namespace, settings.component, settings.endpoint)
        self._ready = False
        self._death: EngineShutdown | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._metrics = WorkerMetrics(runtime, settings, engine)
        self._running = 0
        self._last_output = time.monotonic()
        self._canary: Canary | None = None
        self._loras: LoraAdapters | None = None
        self._lora_pages: LoraPages | None = None

    async def run(self) -> None:
        """Start, serve until the runtime stops, drain.

        Raises:
            ConfigError: the engine refuses its flags or its model.
            EngineShutdown: the engine died while it was needed.
        """
        runtime = self._runtime
        runtime.health.require("engine", self._engine_state)
        started = time.monotonic()
        try:
            config = await self._start_or_stop()
            if config is None:
                return
            self._on_ready()
            await self._announce(config)
            self._ready = True
            self._start_canary(config)
            if isinstance(self._engine, EngineMonitor):
                self._spawn(self._end_with(self._engine))
            logger.info(
                "worker %s of %r is ready after %.1f s", self._backend, config.model, time.monotonic() - started
            )
            await runtime.stopping.wait()
            await self._drain()
        finally:
            self._ready = False
            if self._lora_pages is not None:
                await self._lora_pages.close()
            for task in list(self._background):
                task.cancel()
            await asyncio.gather(*self._background, return_exceptions=True)
            await self._engine.cleanup()
        if self._death is not None:
            raise self._death

    async def generate(self, request: PreprocessedRequest, context: RequestContext) -> AsyncIterator[LLMEngineOutput]:
        """Serve one request; the only way in which it is cancelled is ``context.cancel()``."""
        if context.cancelled:
            # The abort would come before the engine knows the request, and so to nothing.
            raise Cancelled(f"request {request.request_id} was cancelled before it began")
        if not self._has_room():
            raise Overloaded(f"this worker has {self._running} requests, its limit", retry_after_seconds=1)
        if request.lora is not None and self._loras is not None and not self._loras.holds(request.lora):
            # Frontends hear of an unloaded adapter a moment later; till then another worker may have it.
            raise Draining(f"LoRA {request.lora!r} is not loaded at this worker any more", param="model")
        context.on_cancel(lambda: self._abort(request.request_id))
        finished = produced = False
        self._running += 1
        span = self._runtime.tracing.span(
            "generate", context.trace, {"request_id": request.request_id, "backend": self._backend}
        )
        try:
            outputs = self._engine.generate(request, context)
            async with closing(outputs):
                async for output in outputs:
                    finished = finished or output.finish_reason is not None
                    self._last_output = time.monotonic()
                    self._metrics.count_output(output)
                    if not produced:
                        produced = True
                        span.event("first_output")
                    yield output
        except EngineShutdown as error:
            self._engine_died(error)
            raise
        finally:
            self._running -= 1
            span.end(None if finished else "cancelled" if context.cancelled else "failed")
            self._metrics.count_request(cancelled=context.cancelled)
        if not finished:
            raise StreamIncomplete(f"engine {self._backend} ended request {request.request_id} without a finish reason")

    def _has_room(self) -> bool:
        return self._running < self._settings.engine_request_limit

    async def _start_or_stop(self) -> EngineConfig | None:
        """Start the engine; None if the process was told to stop meanwhile."""
        start = asyncio.ensure_future(self._engine.start())
        stop = asyncio.ensure_future(self._runtime.stopping.wait())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not start.done():
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            return None
        return start.result()

    async def _announce(self, config: EngineConfig) -> None:
        runtime, settings = self._runtime, self._settings
        card = await asyncio.to_thread(model_card, config, self._backend, settings)
        await self._load_loras(config, card)
        if config.model_directory is not None:
            files = ArtifactServer(config.model_directory, card.artifacts)
            artifacts = EndpointAddress.of(runtime.settings.namespace, settings.component, ARTIFACTS_ENDPOINT)
            await runtime.serve_endpoint(artifacts, iterator_handler(files.serve, ArtifactRequest), announce=False)
        await self._publish(config)
        record = await runtime.serve_endpoint(
            self._address, iterator_handler(self.generate, PreprocessedRequest), card=card, has_room=self._has_room
        )
        if self._loras is not None:
            self._open_loras(self._loras, record, card)

    async def _load_loras(self, config: EngineConfig, card: ModelDeploymentCard) -> None:
        """Load the configured adapters into the engine, and enter all that it has in the card."""
        engine = self._engine
        if not (config.capabilities.lora and isinstance(engine, LoraHost)):
            if self._settings.lora_modules:
                raise ConfigError(
                    f"engine {self._backend} takes no LoRA adapters, or not with these flags",
                    param="lora_modules",
                    hint="vLLM needs --enable-lora",
                )
            return
        loras = LoraAdapters(engine, self._settings, (card.model, *card.aliases))
        await loras.load_configured()
        card.loras = loras.names()
        self._loras = loras

    def _open_loras(self, loras: LoraAdapters, record: InstanceRecord, card: ModelDeploymentCard) -> None:
        """Let adapters come and go from now on, where that is allowed."""
        runtime = self._runtime
        loras.publish_with(lambda names: self._publish_loras(record, card, names))
        if self._settings.lora_enabled and runtime.system_server is not None:
            self._lora_pages = LoraPages(loras, system_access(runtime.settings))
            self._lora_pages.install(runtime.system_server)
        elif self._settings.lora_enabled:
            logger.warning("adapters cannot be loaded at run time: there is no system port, see --system-port")

    async def _publish_loras(self, record: InstanceRecord, card: ModelDeploymentCard, names: list[str]) -> None:
        if self._runtime.stopping.is_set():
            raise Draining("this worker is going down")
        await self._runtime.announce(msgspec.structs.replace(record, card=msgspec.structs.replace(card, loras=names)))
        if self._runtime.stopping.is_set():
            await self._runtime.withdraw()  # a drain that began meanwhile has not seen this record

    async def _publish(self, config: EngineConfig) -> None:
        """Publish KV events and load, as far as the engine has them and there is an event plane."""
        runtime, engine = self._runtime, self._engine
        plane = runtime.event_plane
        if plane is None:
            return
        if config.capabilities.kv_events and isinstance(engine, KvEventSource):
            publisher = KvEventPublisher(
                runtime.instance_id,
                config.model,
                config.block_size_tokens,
                lambda payload: plane.publish(KV_EVENTS_SUBJECT, payload),
            )
            address = EndpointAddress.of(runtime.settings.namespace, self._settings.component, KV_SNAPSHOT_ENDPOINT)
            handler = iterator_handler(publisher.snapshot, KvSnapshotRequest)
            await runtime.serve_endpoint(address, handler, announce=False)
            self._spawn(publisher.follow(engine.kv_events()))
        if config.capabilities.load and isinstance(engine, LoadSource):
            self._spawn(publish_load(engine, plane, runtime.instance_id, config.model))

    def _start_canary(self, config: EngineConfig) -> None:
        settings = self._settings
        if settings.canary_interval_seconds:
            self._canary = Canary(
                self.generate,
                lambda: self._last_output,
                config.model,
                interval_seconds=settings.canary_interval_seconds,
                timeout_seconds=settings.canary_timeout_seconds,
            )
            self._spawn(self._canary.run())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("background work of the worker failed", exc_info=task.exception())

    async def _drain(self) -> None:
        grace = self._settings.drain_grace_seconds if self._death is None else 0.0
        if not await self._runtime.drain(grace):
            logger.warning("requests were still running %.0f s after the stop signal", grace)
        await self._engine.drain(1.0)

    def _abort(self, request_id: str) -> None:
        self._spawn(self._engine.abort(request_id))

    async def _end_with(self, engine: EngineMonitor) -> None:
        self._engine_died(EngineShutdown(await engine.failure()))

    def _engine_died(self, error: EngineShutdown) -> None:
        if self._death is None and not self._runtime.stopping.is_set():
            logger.error("the engine died: %s", error.message)
            self._death = error
            self._runtime.stopping.set()

    def _engine_state(self) -> str | None:
        if self._death is not None:
            return self._death.message
        if not self._ready:
            return "the engine is starting"
        return self._canary.failure if self._canary is not None else None


def model_card(config: EngineConfig, backend: str, settings: WorkerSettings) -> ModelDeploymentCard:
    """The card of a started engine. Hashes the model's text files.

    Raises:
        ConfigError: the engine has no model name, or its files cannot be read.
    """
    if not config.model:
        raise ConfigError(f"engine {backend} started without a model name", hint="pass --served-model-name")
    types: list[ModelType] = ["chat", "completions"]
    if config.capabilities.embeddings:
        types.append("embedding")
    card = ModelDeploymentCard(
        model=config.model,
        aliases=settings.model_aliases,
        types=types,
        mode=settings.mode,
        context_length_tokens=config.context_length_tokens,
        block_size_tokens=config.block_size_tokens,
        max_batched_tokens=config.max_batched_tokens,
        total_kv_blocks=config.total_kv_blocks,
        dp_size=config.dp_size,
        dtype=config.dtype,
        backend=backend,
        capabilities=config.capabilities,
        tool_call_parser=settings.tool_call_parser or config.tool_call_parser,
        reasoning_parser=settings.reasoning_parser or config.reasoning_parser,
        artifacts=collect(config.model_directory) if config.model_directory is not None else {},
    )
    card.encode()
    return card
