"""`MockerEngine`: the engine contract (`dynamo.protocols.engine`) around simulated ranks."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from dynamo.errors import ConfigError, EngineShutdown, InvalidRequest, KvTransferError, Overloaded
from dynamo.mocker.answers import Vocabulary, plan_answer
from dynamo.mocker.core import CoreLimits, EngineCore, StepResult
from dynamo.mocker.event_queue import KvEventQueue
from dynamo.mocker.perf_model import PerfModel
from dynamo.mocker.profile_data import load_perf_model
from dynamo.mocker.rank import Pace, Rank
from dynamo.mocker.settings import MockerSettings, parse_flags
from dynamo.mocker.stream import Stream
from dynamo.protocols.context import RequestContext
from dynamo.protocols.engine import EngineCapabilities, EngineConfig, EngineOptions
from dynamo.protocols.kv_events import EngineKvEvents
from dynamo.protocols.llm import DisaggregationMode, KvTransferParams, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.load import EngineLoad
from dynamo.worker.open_streams import OpenStreams

__all__ = ["MockerEngine"]

logger = logging.getLogger(__name__)

#: For a model whose config.json does not say.
_DEFAULT_VOCABULARY = 32_000
_DEFAULT_CONTEXT = 131_072
#: Marks the `kv_transfer_params` that one mocker gives and another takes.
_CONNECTOR = "mocker"


@dataclass
class _Started:
    """What exists from `start` on."""

    context_length: int
    vocabulary: Vocabulary
    ranks: list[Rank]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class MockerEngine:
    """Implements LLMEngine, KvEventSource and LoadSource."""

    def __init__(self, options: EngineOptions) -> None:
        self._settings = parse_flags(options.argv)
        self._mode = options.mode
        self._directory = Path(options.model) if options.model else _demo_model_directory()
        self._name = options.served_model_name or (self._directory.name if options.model else "mocker")
        self._engine_id = uuid.uuid4().hex
        self._events = KvEventQueue(self._settings.block_size)
        self._streams: OpenStreams[tuple[Stream, Rank]] = OpenStreams()
        self._started: _Started | None = None
        self._closed = False
        self._step = 0

    async def start(self) -> EngineConfig:
        """Read the model's config.json and the measurements, and start the ranks; see LLMEngine."""
        settings = self._settings
        config = _model_config(self._directory)
        perf_model = load_perf_model(Path(settings.perf_model)) if settings.perf_model else PerfModel()
        longest = settings.max_model_len or int(config.get("max_position_embeddings") or _DEFAULT_CONTEXT)
        context_length = min(longest, settings.num_gpu_blocks * settings.block_size)
        if settings.startup_time:
            await asyncio.sleep(settings.startup_time)
        clock = asyncio.get_running_loop().time
        limits = _core_limits(settings, context_length)
        self._started = _Started(
            context_length,
            Vocabulary.of_size(int(config.get("vocab_size") or _DEFAULT_VOCABULARY)),
            [
                Rank(
                    EngineCore(limits, perf_model.faster_decode(settings.decode_speedup_ratio)),
                    Pace(settings.speedup_ratio, clock),
                    partial(self._deliver, number),
                )
                for number in range(settings.data_parallel_size)
            ],
        )
        self._started.tasks = [asyncio.ensure_future(rank.run()) for rank in self._started.ranks]
        for task in self._started.tasks:
            task.add_done_callback(self._rank_ended)
        return self._describe(context_length)

    async def generate(
        self,
        request: PreprocessedRequest,
        context: RequestContext,  # noqa: ARG002 - a cancelled context reaches engines as abort()
    ) -> AsyncIterator[LLMEngineOutput]:
        """Stream one request; see LLMEngine.

        Raises:
            Overloaded: too many requests wait.
            Draining: the engine takes nothing new.
            KvTransferError: the KV that the request names is not a mocker's, or not of this prompt.
        """
        stream = self._begin(request)
        left = stream.seconds_left()
        late = asyncio.get_running_loop().call_later(left, self._cancel, stream) if left is not None else None
        try:
            output = await stream.next()
            while output.finish_reason is None:
                yield output
                output = await stream.next()
            yield output
        finally:
            if late is not None:
                late.cancel()
            self._cancel(stream)

    async def abort(self, request_id: str) -> None:
        """Stop a request; its KV blocks are free when this returns. Idempotent."""
        if entry := self._streams.get(request_id):
            self._cancel(entry[0])

    async def drain(self, deadline_seconds: float) -> None:
        """Refuse new requests; return when what runs has ended, or after `deadline_seconds`."""
        await self._streams.drain(deadline_seconds)

    async def cleanup(self) -> None:
        """Stop the ranks; open streams end with EngineShutdown. Idempotent."""
        self._closed = True
        self._fail_streams("the mocker was shut down")
        if self._started is not None:
            for task in self._started.tasks:
                task.cancel()
            await asyncio.gather(*self._started.tasks, return_exceptions=True)

    def kv_events(self) -> AsyncIterator[EngineKvEvents]:
        """Changes of the prefix caches; see KvEventSource."""
        return self._events.follow()

    def load(self) -> Sequence[EngineLoad]:
        """Load now; see LoadSource."""
        ranks = self._started.ranks if self._started else []
        return [rank.core.load(number) for number, rank in enumerate(ranks)]

    def _begin(self, request: PreprocessedRequest) -> Stream:
        started = self._accept(request)
        if self._mode is DisaggregationMode.PREFILL:
            request = msgspec.structs.replace(request, stop=msgspec.structs.replace(request.stop, max_tokens=1))
        answer = plan_answer(
            request,
            source=self._settings.output,
            vocabulary=started.vocabulary,
            context_length=started.context_length,
            default_tokens=self._settings.default_output_tokens,
            seed=self._settings.seed,
        )
        stream = Stream(
            request,
            answer,
            self._settings.block_size,
            transferred=_takes_transfer(self._mode, request),
            kv_transfer_params=self._transfer_params(request) if self._mode is DisaggregationMode.PREFILL else None,
        )
        ranks = started.ranks
        chosen = request.dp_rank
        rank = min(ranks, key=lambda rank: rank.core.request_count) if chosen is None else ranks[chosen]
        rank.add(stream.sequence)
        self._streams.open(request.request_id, (stream, rank))
        return stream

    def _accept(self, request: PreprocessedRequest) -> _Started:
        started = self._started
        if self._closed or started is None:
            raise EngineShutdown("the mocker is not running")
        self._streams.check(request.request_id)
        running = self._settings.data_parallel_size * self._settings.max_num_seqs
        if len(self._streams) >= running + self._settings.max_queued_requests:
            raise Overloaded(f"{len(self._streams)} requests are running or waiting", retry_after_seconds=1.0)
        _check(request, started.context_length, self._settings.data_parallel_size)
        return started

    def _cancel(self, stream: Stream) -> None:
        """End a stream, unless it has ended, and free what it holds."""
        stream.cancel()
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        known, rank = self._streams.get(stream.request.request_id) or (None, None)
        if known is stream and rank is not None:
            self._streams.close(stream.request.request_id)
            rank.core.abort(stream.sequence)

    def _fail_streams(self, reason: str) -> None:
        for stream, _ in self._streams:
            stream.fail(EngineShutdown(reason))
            self._forget(stream)

    def _rank_ended(self, task: asyncio.Task[None]) -> None:
        """Without one of its ranks the engine is dead."""
        if not task.cancelled() and task.exception() is not None:
            logger.error("a rank of the mocker died", exc_info=task.exception())
            self._closed = True
            self._fail_streams(f"a rank of the mocker died: {task.exception()}")

    def _deliver(self, dp_rank: int, result: StepResult) -> None:
        self._step += bool(result.outputs)
        self._events.put(result.events, dp_rank)
        for sequence in result.outputs:
            stream: Stream = sequence.key
            stream.advance(self._step)
            if stream.ended:
                self._forget(stream)
        if self._started is not None:
            self._started.ranks[dp_rank].core.caching_paused = self._events.full

    def _transfer_params(self, request: PreprocessedRequest) -> KvTransferParams:
        return {
            "connector": _CONNECTOR,
            "engine_id": self._engine_id,
            "request_id": request.request_id,
            "prompt_tokens": len(request.token_ids) // 4,
        }

    def _describe(self, context_length: int) -> EngineConfig:
        settings = self._settings
        return EngineConfig(
            model=self._name,
            model_directory=self._directory,
            context_length_tokens=context_length,
            block_size_tokens=settings.block_size,
            total_kv_blocks=settings.num_gpu_blocks,
            max_batched_tokens=settings.max_num_batched_tokens,
            max_running_requests=settings.max_num_seqs,
            dp_size=settings.data_parallel_size,
            capabilities=EngineCapabilities(
                kv_events=settings.enable_prefix_caching,
                load=True,
                modes=list(DisaggregationMode),
                batch_invariant=True,
                resume=True,
            ),
        )


def _core_limits(settings: MockerSettings, context_length: int) -> CoreLimits:
    budget = settings.max_num_batched_tokens
    if not settings.enable_chunked_prefill and budget < context_length:
        raise ConfigError(
            f"without chunked prefill a step must take {context_length} tokens; --max-num-batched-tokens is {budget}",
            param="max_num_batched_tokens",
            hint="raise --max-num-batched-tokens or lower --max-model-len",
        )
    bandwidth = settings.kv_transfer_bandwidth * 1e9
    return CoreLimits(
        total_blocks=settings.num_gpu_blocks,
        block_size=settings.block_size,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=settings.enable_prefix_caching,
        enable_chunked_prefill=settings.enable_chunked_prefill,
        transfer_seconds_per_token=settings.kv_bytes_per_token / bandwidth if bandwidth else 0.0,
    )


def _model_config(directory: Path) -> dict[str, Any]:
    """The model's config.json; that of a multimodal model has the language model's part within."""
    if not directory.is_dir():
        raise ConfigError(
            f"model directory {str(directory)!r} does not exist",
            param="model",
            hint="give a directory with a tokenizer.json; without --model-path the mocker uses the demo model's",
        )
    path = directory / "config.json"
    if not path.is_file():
        return {}
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is not a JSON object: {error}", param="model") from error
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _demo_model_directory() -> Path:
    """The packaged demo model, for its tokenizer: found as data, since engines do not import each other."""
    return Path(str(resources.files("dynamo.reference"))) / "demo_model"


def _takes_transfer(mode: DisaggregationMode, request: PreprocessedRequest) -> bool:
    """Whether the KV of the prompt comes from a prefill worker."""
    params = request.kv_transfer_params
    if mode is not DisaggregationMode.DECODE or params is None:
        return False
    if params.get("connector") != _CONNECTOR:
        raise KvTransferError(f"a mocker cannot take KV from connector {params.get('connector')!r}")
    tokens = len(request.token_ids) // 4
    if params.get("prompt_tokens") != tokens:
        raise KvTransferError(f"the KV is of {params.get('prompt_tokens')!r} prompt tokens; this prompt has {tokens}")
    return True


def _check(request: PreprocessedRequest, context_length: int, dp_size: int) -> None:
    tokens, odd_bytes = divmod(len(request.token_ids), 4)
    if odd_bytes:
        raise InvalidRequest("token_ids is not a whole number of packed uint32", param="token_ids")
    if not 0 <= request.prior_output_tokens < tokens:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if tokens >= context_length:
        raise InvalidRequest(
            f"the prompt has {tokens} tokens; the context of {context_length} also needs room for the answer",
            param="prompt",
            reason="context_length_exceeded",
        )
    for name in ("lora", "guided"):
        if getattr(request, name) is not None:
            raise InvalidRequest(f"the mocker cannot serve {name!r}", param=name)
    if request.embed:
        raise InvalidRequest("the mocker makes no embeddings", param="embed")
    if request.stop.max_tokens is not None and request.stop.max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {request.stop.max_tokens}; it must be positive", param="max_tokens")
    if request.dp_rank is not None and not 0 <= request.dp_rank < dp_size:
        raise InvalidRequest(f"there is no data-parallel rank {request.dp_rank}", param="dp_rank")
