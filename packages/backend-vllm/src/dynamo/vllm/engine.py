"""`VllmEngine`: the engine contract (`dynamo.protocols.engine`) around vLLM's `AsyncLLM`.

The worker host drives it. Token ids go in and come out: vLLM neither tokenizes nor detokenizes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dynamo.errors import ConfigError, EngineError, EngineShutdown
from dynamo.protocols.context import RequestContext
from dynamo.protocols.engine import EngineConfig, EngineOptions, MetricFamily
from dynamo.protocols.kv_copies import CopyCounter
from dynamo.protocols.kv_events import EngineKvEvents
from dynamo.protocols.llm import DisaggregationMode, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.load import EngineLoad
from dynamo.reference import demo_model_directory
from dynamo.vllm.args import requested_mode, split_flags
from dynamo.vllm.describe import EngineFacts, describe
from dynamo.vllm.foreign_errors import translated
from dynamo.vllm.installation import find_installation
from dynamo.vllm.kv_events import VllmKvEvents
from dynamo.vllm.launch import EngineHandle, launch
from dynamo.vllm.load import VllmLoad
from dynamo.vllm.lora import LoraRegistry
from dynamo.vllm.outputs import StreamConverter, embedding_output
from dynamo.vllm.sampling import sampling_params
from dynamo.vllm.weights_check import check_weights
from dynamo.worker.open_streams import OpenStreams

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.output_processor import RequestOutputCollector

__all__ = ["VllmEngine"]

logger = logging.getLogger(__name__)

_DEATH_POLL_SECONDS = 0.25


class _Stream:
    """One open stream."""

    __slots__ = ("cancelled", "queue")

    def __init__(self) -> None:
        self.cancelled = False
        self.queue: RequestOutputCollector | None = None
        """Where vLLM puts the outputs, while it has the request."""


class VllmEngine:
    """Implements LLMEngine, KvEventSource, LoadSource, MetricsSource, LoraHost and EngineMonitor."""

    def __init__(self, options: EngineOptions) -> None:
        self._settings, self._argv = split_flags(options.argv)
        mode = requested_mode(self._settings, options.mode)
        if mode is not DisaggregationMode.AGGREGATED:
            raise ConfigError(
                f"the vLLM backend cannot run as a {mode.value} worker yet",
                param="disaggregation_mode",
                hint="leave the flag out: the worker then takes requests from prompt to last token",
            )
        self._directory = Path(options.model) if options.model else demo_model_directory()
        self._name = options.served_model_name or (self._directory.name if options.model else "dynamo-demo")
        self._streams: OpenStreams[_Stream] = OpenStreams()
        self._gone: str | None = "the engine has not started"
        self._died = asyncio.Event()
        self._load = VllmLoad()
        self._handle: EngineHandle | None = None
        self._facts: EngineFacts | None = None
        self._loras: LoraRegistry | None = None
        self._events: VllmKvEvents | None = None
        self._copies = CopyCounter()
        self._watcher: asyncio.Task[None] | None = None
        self._cancelling: set[asyncio.Task[None]] = set()

    async def start(self) -> EngineConfig:
        """Start vLLM; see LLMEngine.

        Raises:
            ConfigError: vLLM is missing or of another version, or refuses a flag or the model.
            EngineError: it does not start.
        """
        given = {"model": str(self._directory), "served_model_name": self._name}
        installation = find_installation()
        await asyncio.to_thread(check_weights, self._directory)
        self._handle = await launch(
            installation,
            self._argv,
            given,
            timeout_seconds=self._settings.engine_start_timeout_seconds,
            stat_loggers=lambda: [self._load.stat_logger()],
        )
        try:
            self._facts = await describe(self._handle.llm)
            self._loras = LoraRegistry(self._handle.llm)
        except BaseException:
            await self.cleanup()
            raise
        self._gone = None
        self._watcher = asyncio.create_task(self._watch(self._handle))
        return self._facts.config(self._name, self._directory)

    async def generate(
        self,
        request: PreprocessedRequest,
        context: RequestContext,  # noqa: ARG002 - a cancelled context reaches engines as abort()
    ) -> AsyncIterator[LLMEngineOutput]:
        """Stream one request; see LLMEngine.

        Raises:
            Draining: the engine takes nothing new.
        """
        handle, facts, loras = self._running()
        self._streams.check(request.request_id)
        prompt = request.prompt().tolist()
        facts.check(request, prompt)
        with loras.use(request.lora) as lora, self._stream(request) as stream, translated(handle.why_dead):
            if request.embed:
                yield await self._embed(handle, request, prompt, lora)
                return
            queue = await self._submit(handle, request, prompt, lora, stream)
            converter, finished = StreamConverter(request, prompt), False
            while not finished:
                output = converter.convert(queue.get_nowait() or await queue.get())
                finished = output.finish_reason is not None
                if finished:
                    stream.queue = None
                yield output

    async def abort(self, request_id: str) -> None:
        """Stop a request; see LLMEngine."""
        stream = self._streams.get(request_id)
        if stream is not None:
            await self._cancel(stream)

    async def drain(self, deadline_seconds: float) -> None:
        """Refuse new requests; return when what runs has ended, or after `deadline_seconds`."""
        await self._streams.drain(deadline_seconds)

    async def cleanup(self) -> None:
        """End vLLM and its processes; open streams end with EngineShutdown. Idempotent."""
        self._end_streams("the engine was shut down")
        handle, self._handle = self._handle, None
        if handle is None:
            return
        if self._watcher is not None:
            self._watcher.cancel()
        if self._events is not None:
            await self._events.close()
        await asyncio.to_thread(handle.close)

    async def failure(self) -> str:
        """Wait until the engine has died by itself; the reason. See EngineMonitor."""
        await self._died.wait()
        return self._gone or ""

    async def kv_events(self) -> AsyncIterator[EngineKvEvents]:
        """Changes of the prefix caches of all ranks; see KvEventSource."""
        _, facts, _ = self._running()
        config = facts.vllm_config.kv_events_config
        if not facts.publishes_kv_events or config is None:
            raise EngineError("this vLLM engine publishes no KV events")
        # A consumer gets all from the first step on, so it counts anew.
        self._copies = CopyCounter()
        self._events = VllmKvEvents(
            config.endpoint, config.replay_endpoint, topic=config.topic, dp_ranks=range(facts.dp_size)
        )
        try:
            async for batch in self._events:
                changes = self._copies.first_and_last(batch)
                if changes.events:
                    yield changes
        finally:
            await self._events.close()

    def load(self) -> Sequence[EngineLoad]:
        """Load after the last step; see LoadSource."""
        return [self._present(load) for load in self._load.load()]

    def _present(self, load: EngineLoad) -> EngineLoad:
        if not self._streams:
            # vLLM reports steps; after the last abort there is none that could tell that nothing runs any more.
            idle = {"running_requests": 0, "waiting_requests": 0, "used_kv_blocks": 0, "active_decode_blocks": 0}
            load = msgspec.structs.replace(load, **idle)
        cached = max(0, self._copies.blocks(load.dp_rank) - load.used_kv_blocks)
        return msgspec.structs.replace(load, cached_kv_blocks=min(cached, load.total_kv_blocks - load.used_kv_blocks))

    def metrics(self) -> Iterable[MetricFamily]:
        """What vLLM measures itself; see MetricsSource."""
        return self._load.metrics()

    async def load_lora(self, name: str, path: str) -> None:
        """Load an adapter in PEFT's layout; see LoraHost."""
        _, _, loras = self._running()
        await loras.load(name, Path(path))

    async def unload_lora(self, name: str) -> None:
        """Forget an adapter once no request uses it; see LoraHost."""
        _, _, loras = self._running()
        await loras.unload(name)

    def loras(self) -> Sequence[str]:
        """Adapters that requests may name."""
        return self._loras.names() if self._loras is not None else []

    async def _submit(
        self,
        handle: EngineHandle,
        request: PreprocessedRequest,
        prompt: list[int],
        lora: LoRARequest | None,
        stream: _Stream,
    ) -> RequestOutputCollector:
        from vllm.inputs.engine import tokens_input

        queue = await handle.llm.add_request(
            request.request_id,
            tokens_input(prompt, cache_salt=request.cache_salt),
            sampling_params(request),
            lora_request=lora,
            trace_headers=request.trace or None,
            priority=request.priority,
            data_parallel_rank=request.dp_rank,
        )
        stream.queue = queue
        if stream.cancelled:  # while vLLM took the request
            await self._cancel(stream)
        return queue

    async def _embed(
        self, handle: EngineHandle, request: PreprocessedRequest, prompt: list[int], lora: LoRARequest | None
    ) -> LLMEngineOutput:
        from vllm.inputs.engine import tokens_input
        from vllm.pooling_params import PoolingParams

        outputs = handle.llm.encode(
            tokens_input(prompt, cache_salt=request.cache_salt),
            PoolingParams(task="embed"),
            request.request_id,
            lora_request=lora,
            trace_headers=request.trace or None,
            priority=request.priority,
        )
        async for output in outputs:
            if output.finished:
                return embedding_output(output, len(prompt))
        raise EngineError(f"vLLM gave no embedding for request {request.request_id}")

    @contextmanager
    def _stream(self, request: PreprocessedRequest) -> Iterator[_Stream]:
        """A stream's place in the engine; left before its end, it is aborted."""
        stream = _Stream()
        self._streams.open(request.request_id, stream)
        loop = asyncio.get_running_loop()
        deadline = request.deadline_unix_seconds
        timer = deadline and loop.call_later(max(0.0, deadline - time.time()), self._cancel_soon, stream)
        try:
            yield stream
        finally:
            if timer:
                timer.cancel()
            self._streams.close(request.request_id)
            self._cancel_soon(stream)

    async def _cancel(self, stream: _Stream) -> None:
        stream.cancelled = True
        if stream.queue is not None and self._handle is not None and self._gone is None:
            # By the id that vLLM gave it: the queue's last output then says "abort".
            with contextlib.suppress(EngineShutdown), translated(self._handle.why_dead):
                await self._handle.llm.abort(stream.queue.request_id, internal=True)

    def _cancel_soon(self, stream: _Stream) -> None:
        """For callers that cannot wait: a timer, and a generator that is being closed."""
        if stream.queue is None or self._gone is not None:
            stream.cancelled = True
            return
        task = asyncio.ensure_future(self._cancel(stream))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    def _end_streams(self, reason: str) -> None:
        if self._gone is None:
            self._gone = reason
        for stream in self._streams:
            if stream.queue is not None:
                stream.queue.put(EngineShutdown(reason))

    async def _watch(self, handle: EngineHandle) -> None:
        """See to it that all hear of the engine's death: vLLM notices it within a second, and tells only who asks."""
        while not handle.llm.errored:
            await asyncio.sleep(_DEATH_POLL_SECONDS)
        logger.error("%s; the end of its output:\n%s", handle.why_dead(), handle.output())
        self._end_streams(handle.why_dead())
        self._died.set()

    def _running(self) -> tuple[EngineHandle, EngineFacts, LoraRegistry]:
        if self._handle is None or self._facts is None or self._loras is None or self._gone is not None:
            raise EngineShutdown(self._gone or "the engine has not started")
        return self._handle, self._facts, self._loras
