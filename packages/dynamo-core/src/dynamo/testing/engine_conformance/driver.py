"""Drives one engine as the worker host does: starts it, sends requests, cancels, watches load and KV events."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dynamo.protocols.engine import EngineConfig, KvEventSource, LLMEngine, LoadSource
from dynamo.protocols.llm import (
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    TokenLogprob,
    Usage,
    pack_token_ids,
)
from dynamo.protocols.load import EngineLoad
from dynamo.runtime.context import Context
from dynamo.testing.engine_conformance.mirror import KvMirror

__all__ = ["GREEDY", "EngineDriver", "Generation", "OpenStream", "SuiteSettings"]

#: Requests are greedy unless a check is about sampling.
GREEDY = SamplingOptions(temperature=0.0)
_DEFAULT_VOCABULARY = 256
_LONG_STREAM_TOKENS = 512


@dataclass(frozen=True)
class SuiteSettings:
    """How patient and how thorough a run is."""

    start_timeout_seconds: float = 300.0
    check_timeout_seconds: float = 60.0
    soon_seconds: float = 10.0
    """How long what should happen at once may take: a stream that ends after abort(), KV blocks that become free."""
    events_quiet_seconds: float = 0.1
    """When no KV event has come for so long, none is on its way."""
    lora_directory: str | None = None
    """An adapter of the model under test, for the LoRA checks."""
    max_eviction_tokens: int = 200_000
    """Larger KV pools are not filled to provoke evictions."""
    seed: int = 0


@dataclass
class Generation:
    """All that came out of one stream."""

    request: PreprocessedRequest
    outputs: list[LLMEngineOutput] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """All token ids."""
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def finish_reason(self) -> FinishReason | None:
        """Of the last output."""
        return self.outputs[-1].finish_reason if self.outputs else None

    @property
    def usage(self) -> Usage:
        """Of the last output; zeros when it has none (the check of usage says so)."""
        return (self.outputs[-1].usage if self.outputs else None) or Usage(0, 0)

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """All of them, in order."""
        return [entry for output in self.outputs for entry in output.logprobs or ()]


class OpenStream:
    """One request that is being served."""

    def __init__(self, engine: LLMEngine, request: PreprocessedRequest) -> None:
        self.request = request
        self.generation = Generation(request)
        self._engine = engine
        self._context = Context(request.request_id, deadline_unix_seconds=request.deadline_unix_seconds)
        self._iterator: AsyncIterator[LLMEngineOutput] = engine.generate(request, self._context)

    async def next(self) -> LLMEngineOutput | None:
        """The next output; None at the end."""
        try:
            output = await self._iterator.__anext__()
        except StopAsyncIteration:
            return None
        self.generation.outputs.append(output)
        return output

    async def first_tokens(self) -> None:
        """Read until token ids came, or the end."""
        while not self.generation.ids and await self.next() is not None:
            pass

    async def rest(self) -> Generation:
        """Read to the end."""
        while await self.next() is not None:
            pass
        return self.generation

    async def cancel(self) -> None:
        """What the worker host does when a client goes away."""
        self._context.cancel()
        await self._engine.abort(self.request.request_id)

    async def close(self) -> bool:
        """Close the iterator early; False when it cannot be closed."""
        close = getattr(self._iterator, "aclose", None)
        if close is None:
            return False
        await close()
        return True


class EngineDriver:
    """A started engine and what the suite knows about it."""

    def __init__(self, engine: LLMEngine, config: EngineConfig, settings: SuiteSettings) -> None:
        self.engine = engine
        self.config = config
        self.settings = settings
        self.mirror: KvMirror | None = None
        self.sent: list[Generation] = []
        """Every request, with its output so far."""
        self.random = random.Random(settings.seed)
        self._numbers = itertools.count()
        self._vocabulary = vocabulary_size(config.model_directory)
        self._event_reader: asyncio.Task[None] | None = None
        if config.capabilities.kv_events and isinstance(engine, KvEventSource):
            self.mirror = KvMirror(config.block_size_tokens)
            self._event_reader = asyncio.ensure_future(self._read_events(engine, self.mirror))

    async def close(self) -> None:
        """Clean the engine up."""
        if self._event_reader is not None:
            self._event_reader.cancel()
            await asyncio.wait([self._event_reader])
        await self.engine.cleanup()

    def prompt(self, n_tokens: int | None = None) -> list[int]:
        """Random ids that no other prompt begins with; by default two blocks and a bit."""
        if n_tokens is None:
            n_tokens = 2 * self.config.block_size_tokens + 3
        lowest = min(16, self._vocabulary // 4)
        return [self.random.randrange(lowest, self._vocabulary) for _ in range(n_tokens)]

    @property
    def long_tokens(self) -> int:
        """A `max_tokens` that fits the context behind a default prompt and is not reached soon."""
        room = self.config.context_length_tokens - 2 * self.config.block_size_tokens - 4
        return max(16, min(room, _LONG_STREAM_TOKENS))

    def request(
        self,
        prompt: Sequence[int] | None = None,
        *,
        max_tokens: int | None = 8,
        ignore_eos: bool = True,
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
        sampling: SamplingOptions = GREEDY,
        **fields: Any,
    ) -> PreprocessedRequest:
        """A request with an id of its own; `fields` are those of `PreprocessedRequest`."""
        return PreprocessedRequest(
            request_id=f"conformance-{next(self._numbers)}",
            model=self.config.model,
            token_ids=pack_token_ids(self.prompt() if prompt is None else prompt),
            sampling=sampling,
            stop=StopConditions(max_tokens, min_tokens, list(stop_token_ids), ignore_eos),
            **fields,
        )

    def long_request(self) -> PreprocessedRequest:
        """A request that is still running when a check wants to interfere with it."""
        return self.request(max_tokens=self.long_tokens)

    def open(self, request: PreprocessedRequest) -> OpenStream:
        """Begin a request."""
        stream = OpenStream(self.engine, request)
        self.sent.append(stream.generation)
        return stream

    async def run(self, request: PreprocessedRequest) -> Generation:
        """Serve one request to its end."""
        return await self.open(request).rest()

    async def greedy(self, prompt: Sequence[int], **fields: Any) -> Generation:
        """Serve one greedy request, with the logprobs that :meth:`disagreement` needs where there are any."""
        logprobs = 2 if self.config.capabilities.logprobs else None
        return await self.run(
            self.request(prompt, sampling=msgspec.structs.replace(GREEDY, logprobs=logprobs), **fields)
        )

    def used_blocks(self) -> int | None:
        """KV blocks that running requests hold; None when the engine does not report load."""
        return None if (load := self._load()) is None else sum(entry.used_kv_blocks for entry in load)

    def cached_blocks(self) -> int | None:
        """KV blocks that only the prefix cache holds; None when the engine does not report load."""
        return None if (load := self._load()) is None else sum(entry.cached_kv_blocks for entry in load)

    async def soon(self, condition: Callable[[], bool]) -> bool:
        """Whether `condition` holds before long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.soon_seconds
        while not condition():
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    async def events_settled(self, mirror: KvMirror) -> None:
        """Wait until no event comes any more. Raises what the engine's kv_events() raised."""
        received = -1
        while received != mirror.received:
            received = mirror.received
            await asyncio.sleep(self.settings.events_quiet_seconds)
        if self._event_reader is not None and self._event_reader.done():
            self._event_reader.result()

    def _load(self) -> Sequence[EngineLoad] | None:
        if self.config.capabilities.load and isinstance(self.engine, LoadSource):
            return self.engine.load()
        return None

    async def _read_events(self, source: KvEventSource, mirror: KvMirror) -> None:
        async for batch in source.kv_events():
            mirror.apply(batch)


def vocabulary_size(model_directory: Path | None) -> int:
    """``vocab_size`` of the model's config.json, else a number that every vocabulary has."""
    path = model_directory / "config.json" if model_directory else None
    if path is None or not path.is_file():
        return _DEFAULT_VOCABULARY
    config = msgspec.json.decode(path.read_bytes())
    if not isinstance(config, dict):
        return _DEFAULT_VOCABULARY
    text = config.get("text_config")
    size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    return size if isinstance(size, int) else _DEFAULT_VOCABULARY
