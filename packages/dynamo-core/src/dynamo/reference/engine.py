"""`ReferenceEngine`: the engine contract (`dynamo.protocols.engine`) around an engine thread."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dynamo.errors import ConfigError, DynamoError, EngineShutdown, InvalidRequest, Overloaded
from dynamo.protocols.context import RequestContext
from dynamo.protocols.engine import EngineCapabilities, EngineConfig, EngineOptions
from dynamo.protocols.kv_events import EngineKvEvents
from dynamo.protocols.llm import DisaggregationMode, LLMEngineOutput, PreprocessedRequest, Usage
from dynamo.protocols.load import EngineLoad
from dynamo.reference import demo_model_directory
from dynamo.reference.admission import RequestLimits, check_request
from dynamo.reference.core import StepResult, StreamItem
from dynamo.reference.engine_thread import EngineThread
from dynamo.reference.event_feed import KvEventFeed
from dynamo.reference.guided import Grammars
from dynamo.reference.loading import LoadedModel, load_model
from dynamo.reference.lora_registry import LoraRegistry
from dynamo.reference.settings import parse_flags
from dynamo.reference.transfer import export_blocks, import_blocks
from dynamo.worker.open_streams import OpenStreams

__all__ = ["DEMO_MODEL_NAME", "ReferenceEngine"]


DEMO_MODEL_NAME = "dynamo-demo"


class _Stream:
    """One open stream; also its key in the engine core."""

    __slots__ = ("ended", "queue", "submitted")

    def __init__(self) -> None:
        self.queue: asyncio.Queue[StreamItem] = asyncio.Queue()
        self.submitted = False
        self.ended = False


@dataclasses.dataclass(frozen=True)
class _Started:
    """What exists from `start` on."""

    loaded: LoadedModel
    limits: RequestLimits
    grammars: Grammars
    loras: LoraRegistry
    thread: EngineThread


class ReferenceEngine:
    """Implements LLMEngine, KvEventSource, LoadSource and LoraHost."""

    def __init__(self, options: EngineOptions) -> None:
        self._settings = parse_flags(options.argv)
        if options.mode is not DisaggregationMode.AGGREGATED:
            raise ConfigError(f"the reference engine cannot run as a {options.mode.value} worker")
        self._directory = Path(options.model) if options.model else demo_model_directory()
        self._name = options.served_model_name or options.model or DEMO_MODEL_NAME
        self._streams: OpenStreams[_Stream] = OpenStreams()
        self._load = EngineLoad()
        self._dead: str | None = None
        self._feed = KvEventFeed(self._announce)
        self._started: _Started | None = None

    async def start(self) -> EngineConfig:
        """Load the model and start the engine thread; see LLMEngine."""
        loaded = await asyncio.to_thread(load_model, self._directory, self._settings)
        loras = LoraRegistry(loaded.config, self._settings.max_lora_rank)
        for item in self._settings.lora:
            await _load_initial_lora(loras, item)
        self._load = loaded.core.load()
        self._started = _Started(
            loaded=loaded,
            limits=RequestLimits(loaded.config.vocab_size, loaded.max_model_len),
            grammars=Grammars(self._directory, loaded.config),
            loras=loras,
            thread=EngineThread(
                loaded.core,
                on_result=self._deliver,
                on_death=self._die,
                blas_threads=self._settings.threads,
                step_delay_seconds=self._settings.step_delay_ms / 1000,
            ),
        )
        return self._describe(self._started)

    async def generate(self, request: PreprocessedRequest, context: RequestContext) -> AsyncIterator[LLMEngineOutput]:
        """Stream one request; see LLMEngine.

        Raises:
            Overloaded: too many requests wait.
            Draining: the engine takes nothing new.
        """
        running = self._accept(request)
        with running.loras.use(request.lora) as adapter, self._stream(request.request_id) as stream:
            guide = await running.grammars.guide(request)
            if stream.queue.empty():  # neither aborted nor shut down meanwhile
                stream.submitted = True
                running.thread.send(lambda core: core.add(stream, request, adapter=adapter, guide=guide))
            context.on_cancel(lambda: self._abort(stream))
            while not stream.ended:
                item = await stream.queue.get()
                if isinstance(item, DynamoError):
                    stream.ended = True
                    raise item
                stream.ended = item.finish_reason is not None
                yield item

    async def abort(self, request_id: str) -> None:
        """Stop a request; its KV blocks are free when this returns. Idempotent."""
        stream = self._streams.get(request_id)
        if stream is not None:
            self._abort(stream)
            with contextlib.suppress(EngineShutdown):
                await self._running().thread.call(lambda _: None)  # commands run in order: the abort has run too

    async def drain(self, deadline_seconds: float) -> None:
        """Refuse new requests; return when what runs has ended, or after `deadline_seconds`."""
        await self._streams.drain(deadline_seconds)

    async def cleanup(self) -> None:
        """Stop the engine thread; open streams end with EngineShutdown. Idempotent."""
        if self._started is not None:
            await self._started.thread.stop()

    def kv_events(self) -> AsyncIterator[EngineKvEvents]:
        """Changes of the prefix cache; see KvEventSource."""
        return self._feed.events()

    def load(self) -> Sequence[EngineLoad]:
        """Load after the last step; see LoadSource."""
        return [self._load]

    async def load_lora(self, name: str, path: str) -> None:
        """Load an adapter in PEFT's layout; see LoraHost."""
        await self._running().loras.load_from(name, Path(path))

    async def unload_lora(self, name: str) -> None:
        """Forget an adapter once no request uses it, and the KV blocks it left in the cache; see LoraHost."""
        running = self._running()
        await running.loras.unload(name, lambda _: running.thread.call(lambda core: core.pool.forget_lora(name)))

    def loras(self) -> Sequence[str]:
        """Adapters that requests may name."""
        return self._started.loras.names() if self._started else []

    async def reset_prefix_cache(self) -> bool:
        """Empty the prefix cache; False, and no change, while requests hold cached blocks."""
        return await self._running().thread.call(lambda core: core.pool.clear())

    async def export_kv(
        self, token_ids: Sequence[int], *, lora: str | None = None, cache_salt: str | None = None
    ) -> list[bytes]:
        """The KV blocks of the longest cached prefix of `token_ids`, one self-describing frame per full block."""
        running = self._running()
        scope = running.loras.scope(lora, cache_salt)
        return await running.thread.call(
            lambda core: export_blocks(core.pool, core.cache, running.loaded.fingerprint, token_ids, scope)
        )

    async def import_kv(self, frames: Sequence[bytes]) -> int:
        """Put exported blocks into the prefix cache; how many of them are there now (fewer when the pool is full).

        Raises:
            KvTransferError: a frame is corrupt, out of order, or of another model, adapter or layout.
        """
        running = self._running()
        scopes = {running.loras.scope(name, None) for name in (None, *running.loras.names())}
        return await running.thread.call(
            lambda core: import_blocks(core.pool, core.cache, running.loaded.fingerprint, frames, scopes)
        )

    @contextmanager
    def _stream(self, request_id: str) -> Iterator[_Stream]:
        """A stream's place in the engine, from submission to its end; left early, it is aborted."""
        stream = _Stream()
        self._streams.open(request_id, stream)
        try:
            yield stream
        finally:
            self._streams.close(request_id)
            self._abort(stream)

    def _abort(self, stream: _Stream) -> None:
        if stream.ended or self._started is None:
            return
        if stream.submitted:
            self._started.thread.send(lambda core: core.abort(stream))
        else:
            stream.queue.put_nowait(LLMEngineOutput(finish_reason="cancelled", usage=Usage(0, 0)))

    def _accept(self, request: PreprocessedRequest) -> _Started:
        running = self._running()
        self._streams.check(request.request_id)
        if len(self._streams) >= self._settings.max_num_seqs + self._settings.max_queued_requests:
            raise Overloaded(f"{len(self._streams)} requests are running or waiting", retry_after_seconds=1.0)
        check_request(request, running.limits)
        return running

    def _running(self) -> _Started:
        if self._started is None or self._dead is not None:
            raise EngineShutdown(self._dead or "the engine has not started")
        return self._started

    def _deliver(self, result: StepResult) -> None:
        self._load = result.load
        for stream, item in result.items:
            if isinstance(stream, _Stream):
                stream.queue.put_nowait(item)
        self._feed.push(result.events)

    def _die(self, reason: str) -> None:
        self._dead = reason
        for stream in self._streams:
            stream.queue.put_nowait(EngineShutdown(reason))
        self._feed.close()

    def _announce(self) -> None:
        self._running().thread.send(lambda core: core.pool.announce())

    def _describe(self, started: _Started) -> EngineConfig:
        loaded = started.loaded
        return EngineConfig(
            model=self._name,
            model_directory=self._directory,
            context_length_tokens=loaded.max_model_len,
            block_size_tokens=loaded.core.cache.block_size,
            total_kv_blocks=loaded.core.cache.num_blocks,
            max_batched_tokens=self._settings.max_num_batched_tokens,
            max_running_requests=self._settings.max_num_seqs,
            dtype="float32",
            # Other models' formats are known to who serves them: --dyn-tool-call-parser, --dyn-reasoning-parser.
            tool_call_parser="hermes" if self._directory == demo_model_directory() else None,
            reasoning_parser="basic" if self._directory == demo_model_directory() else None,
            capabilities=EngineCapabilities(
                kv_events=self._settings.enable_prefix_caching,
                load=True,
                lora=True,
                embeddings=True,
                guided=started.grammars.kinds(),
                logprobs=True,
                resume=True,
            ),
        )


async def _load_initial_lora(loras: LoraRegistry, item: str) -> None:
    name, separator, path = item.partition("=")
    if not (name and separator and path):
        raise ConfigError(f"--lora {item!r} is not NAME=PATH", param="lora")
    try:
        await loras.load_from(name, Path(path))
    except InvalidRequest as error:
        raise ConfigError(error.message, param="lora", hint=error.hint) from error
