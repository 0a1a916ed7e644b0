"""EchoEngine: a whole engine without a model. Plugin authors read it, tests script it, `dynamo.worker` runs it.

The contract is `dynamo.protocols.engine.LLMEngine`; ``dynamo conformance engine echo`` proves that it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from dynamo.echo.blocks import BlockCache, HeldBlocks
from dynamo.echo.replies import Replies, Reply
from dynamo.echo.settings import parse_flags
from dynamo.echo.step_clock import StepClock
from dynamo.errors import ConfigError, Draining, EngineError, EngineShutdown, InvalidRequest
from dynamo.protocols.context import RequestContext
from dynamo.protocols.engine import EngineCapabilities, EngineConfig, EngineOptions
from dynamo.protocols.kv_events import EngineKvEvents
from dynamo.protocols.llm import (
    DisaggregationMode,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    TokenLogprob,
    Usage,
)
from dynamo.protocols.load import EngineLoad

__all__ = ["EchoEngine"]

_EMBEDDING_SIZE = 64
#: Stands for "impossible" in a list of likeliest tokens, as OpenAI's API does; minus infinity is not JSON.
_IMPOSSIBLE = -9999.0


@dataclass
class _Run:
    """One request that has begun and not ended."""

    request: PreprocessedRequest
    prompt: list[int]
    """The client's prompt: without the output of an earlier worker."""
    held: HeldBlocks
    stopped: bool = False
    waiting: asyncio.Future[None] | None = None
    """What the stream waits for, if it does."""

    @property
    def cancelled(self) -> bool:
        """Whether the request was aborted, or its deadline has passed."""
        deadline = self.request.deadline_unix_seconds
        return self.stopped or (deadline is not None and time.time() >= deadline)

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond an abort."""
        if seconds > 0 and not self.stopped:
            self.waiting = asyncio.get_running_loop().create_future()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.waiting, seconds)

    async def step(self, clock: StepClock | None) -> None:
        """Wait for the next step, but not beyond an abort; without a clock let others have their turn."""
        if clock is None or self.stopped:
            await asyncio.sleep(0)
        else:
            self.waiting = clock.next_step()
            await self.waiting

    def stop(self) -> None:
        """End the waiting."""
        self.stopped = True
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)


class EchoEngine:
    """Answers with the prompt's own tokens, or with a script's (see `dynamo.echo.replies`)."""

    def __init__(self, options: EngineOptions) -> None:
        self._settings = parse_flags(options.argv)
        if options.mode is not DisaggregationMode.AGGREGATED:
            raise ConfigError(f"the echo engine cannot be a {options.mode.value} worker", param="mode")
        self._model_directory = Path(options.model) if options.model else _demo_model_directory()
        self._name = options.served_model_name or (self._model_directory.name if options.model else "echo")
        self._cache = BlockCache(self._settings.num_blocks, self._settings.block_size)
        self._replies = Replies()
        rate = self._settings.tokens_per_second
        self._clock = StepClock(1 / rate) if rate else None
        self._runs: dict[str, _Run] = {}
        self._idle = asyncio.Event()
        self._draining = False
        self._closed = False
        self._step = 0

    async def start(self) -> EngineConfig:
        """See `LLMEngine.start`."""
        if not self._model_directory.is_dir():
            raise ConfigError(
                f"model directory {str(self._model_directory)!r} does not exist",
                param="model",
                hint="give a directory with a tokenizer.json; without --model the echo engine uses the demo model's",
            )
        if self._settings.script:
            self._replies = Replies.load(Path(self._settings.script), self._model_directory)
        return EngineConfig(
            model=self._name,
            model_directory=self._model_directory,
            context_length_tokens=self._settings.max_model_len,
            block_size_tokens=self._settings.block_size,
            total_kv_blocks=self._settings.num_blocks,
            capabilities=EngineCapabilities(
                kv_events=True, load=True, embeddings=True, logprobs=True, batch_invariant=True, resume=True
            ),
        )

    async def generate(
        self,
        request: PreprocessedRequest,
        context: RequestContext,  # noqa: ARG002 - a cancelled context reaches engines as abort()
    ) -> AsyncIterator[LLMEngineOutput]:
        """See `LLMEngine.generate`."""
        run = self._begin(request)
        try:
            if request.embed:
                yield LLMEngineOutput(embedding=_embedding(run.prompt), finish_reason="stop", usage=_usage(run, 0))
                return
            reply = self._replies.find(run.prompt)
            first = position = request.prior_output_tokens
            await run.pause((self._settings.delay_ms + reply.delay_ms) / 1000)
            while not (finish := self._finish(run, reply, position)):
                token = reply.token_at(position)
                position += 1
                output = self._output(run, token, is_first=position == first + 1)
                if self._finish(run, reply, position) == "length" and not self._misbehaves:
                    # As engines do: the last token brings the reason, where nothing has to be looked at after it.
                    output.finish_reason, output.usage = "length", _usage(run, position - first)
                    yield output
                    return
                yield output
                self._misbehave(position - first)
                await run.step(self._clock)
            if self._closed:
                raise EngineShutdown("the echo engine was shut down")
            stop_id = reply.token_at(position) if finish == "stop" and _stops(run, reply, position) else None
            usage = _usage(run, position - first)
            yield LLMEngineOutput(finish_reason=finish, stop_reason=stop_id, usage=usage, step=self._step)
        finally:
            self._end(run)

    async def abort(self, request_id: str) -> None:
        """See `LLMEngine.abort`."""
        if run := self._runs.get(request_id):
            self._end(run)

    async def drain(self, deadline_seconds: float) -> None:
        """See `LLMEngine.drain`."""
        self._draining = True
        if self._runs:
            self._idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), deadline_seconds)

    async def cleanup(self) -> None:
        """See `LLMEngine.cleanup`."""
        self._closed = True
        for run in list(self._runs.values()):
            self._end(run)

    async def kv_events(self) -> AsyncIterator[EngineKvEvents]:
        """See `KvEventSource.kv_events`."""
        while True:
            yield EngineKvEvents(await self._cache.take_events())

    def load(self) -> Sequence[EngineLoad]:
        """See `LoadSource.load`."""
        return [
            EngineLoad(
                running_requests=len(self._runs),
                used_kv_blocks=self._cache.used,
                cached_kv_blocks=self._cache.cached,
                total_kv_blocks=self._cache.total,
                active_decode_blocks=self._cache.used,
            )
        ]

    def _begin(self, request: PreprocessedRequest) -> _Run:
        if self._closed:
            raise EngineShutdown("the echo engine was shut down")
        if self._draining:
            raise Draining("this worker finishes what it has and takes nothing new", retry_after_seconds=1.0)
        tokens = request.prompt().tolist()
        _check(request, len(tokens), self._settings.max_model_len)
        if request.request_id in self._runs:
            raise InvalidRequest(f"request {request.request_id!r} is already running", param="request_id")
        held = self._cache.acquire(tokens, request.cache_salt)
        run = _Run(request, tokens[: len(tokens) - request.prior_output_tokens], held)
        self._runs[request.request_id] = run
        return run

    def _end(self, run: _Run) -> None:
        """Stop `run` and free what it holds, once: an abort does not wait for the stream's reader."""
        run.stop()
        if self._runs.get(run.request.request_id) is run:
            del self._runs[run.request.request_id]
            self._cache.release(run.held)
        if not self._runs:
            self._idle.set()

    def _finish(self, run: _Run, reply: Reply, position: int) -> FinishReason | None:
        """Why the stream ends before the token at `position` of the reply; None: it goes on."""
        stop = run.request.stop
        new = position - run.request.prior_output_tokens
        if run.cancelled:
            return "cancelled"
        if len(run.prompt) + position >= self._settings.max_model_len or new == stop.max_tokens:
            return "length"
        if not reply.token_ids:
            return reply.finish_reason
        if _stops(run, reply, position):
            return "stop"
        ended = position >= len(reply.token_ids) and position >= stop.min_tokens and not stop.ignore_eos
        return reply.finish_reason if ended else None

    def _output(self, run: _Run, token: int, *, is_first: bool) -> LLMEngineOutput:
        self._step += 1
        output = LLMEngineOutput([token], step=self._step)
        sampling = run.request.sampling
        if sampling.logprobs is not None:
            output.logprobs = [_logprob(token, sampling.logprobs)]
        if sampling.prompt_logprobs is not None and is_first:
            ids = run.request.prompt().tolist()
            output.prompt_logprobs = [None, *(_logprob(token, sampling.prompt_logprobs) for token in ids[1:])]
        return output

    @property
    def _misbehaves(self) -> bool:
        return bool(self._settings.fail_after or self._settings.die_after)

    def _misbehave(self, produced: int) -> None:
        """What `--fail-after` and `--die-after` ask for."""
        if produced == self._settings.fail_after:
            raise EngineError(f"the echo engine fails after {produced} tokens, as --fail-after says")
        if self._step == self._settings.die_after:
            os._exit(1)


def _demo_model_directory() -> Path:
    """The packaged demo model, for its tokenizer: found as data, since engines do not import each other."""
    return Path(str(resources.files("dynamo.reference"))) / "demo_model"


def _check(request: PreprocessedRequest, n_tokens: int, max_model_len: int) -> None:
    if not request.prior_output_tokens < n_tokens:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if n_tokens >= max_model_len:
        raise InvalidRequest(
            f"the prompt has {n_tokens} tokens; the context of {max_model_len} also needs room for the answer",
            param="prompt",
            reason="context_length_exceeded",
        )
    for name in ("lora", "guided"):
        if getattr(request, name) is not None:
            raise InvalidRequest(f"the echo engine cannot serve {name!r}", param=name)


def _stops(run: _Run, reply: Reply, position: int) -> bool:
    stop = run.request.stop
    may_stop = bool(reply.token_ids) and position >= stop.min_tokens
    return may_stop and reply.token_at(position) in stop.stop_token_ids


def _usage(run: _Run, completion_tokens: int) -> Usage:
    return Usage(len(run.prompt), completion_tokens, run.held.cached_tokens)


def _logprob(token: int, top: int) -> TokenLogprob:
    """Certainty: log 1 for the token, next to nothing for `top` - 1 others."""
    others = [(other, _IMPOSSIBLE) for other in range(top) if other != token]
    return TokenLogprob(token, 0.0, [(token, 0.0), *others][:top])


def _embedding(token_ids: Sequence[int]) -> bytes:
    """A unit vector that depends on nothing but the ids: shape ``[64]``, little-endian float32."""
    angles = np.outer(np.asarray(token_ids, dtype=np.float64) + 1, np.arange(1, _EMBEDDING_SIZE + 1))
    vector = np.sin(angles).mean(axis=0)
    return bytes((vector / np.linalg.norm(vector)).astype("<f4"))
