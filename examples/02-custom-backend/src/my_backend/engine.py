"""The engine: the five methods of `dynamo.protocols.engine.LLMEngine`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tokenizers import Tokenizer

from dynamo.errors import ConfigError, Draining, EngineShutdown, InvalidRequest
from dynamo.protocols.context import RequestContext
from dynamo.protocols.engine import EngineCapabilities, EngineConfig, EngineOptions
from dynamo.protocols.llm import FinishReason, LLMEngineOutput, PreprocessedRequest, StopConditions, Usage
from dynamo.reference import demo_model_directory

CONTEXT_LENGTH = 2048


class ReverseEngine:
    """Needs a tokenizer and no model: ``--model DIRECTORY``, or the tokenizer of dynamo's demo model."""

    def __init__(self, options: EngineOptions) -> None:
        if options.argv:
            raise ConfigError(f"my-backend has no flag {options.argv[0]!r}")
        self._directory = Path(options.model) if options.model else demo_model_directory()
        self._name = options.served_model_name or "reverse"
        self._running: set[str] = set()
        self._draining = False
        self._closed = False

    async def start(self) -> EngineConfig:
        path = self._directory / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"there is no {path}", param="model", hint="give --model a directory with a tokenizer")
        self._tokenizer = Tokenizer.from_file(str(path))
        return EngineConfig(
            model=self._name,
            model_directory=self._directory,
            context_length_tokens=CONTEXT_LENGTH,
            capabilities=EngineCapabilities(batch_invariant=True),
        )

    async def generate(self, request: PreprocessedRequest, context: RequestContext) -> AsyncIterator[LLMEngineOutput]:
        if self._closed or self._draining:
            raise EngineShutdown("shut down") if self._closed else Draining("draining")
        prompt = request.prompt().tolist()
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if len(prompt) >= CONTEXT_LENGTH:
            raise InvalidRequest("the prompt is too long", param="prompt", reason="context_length_exceeded")
        ids, finish, stop_id = self._answer(prompt, request.stop)
        deadline = context.deadline_unix_seconds or float("inf")
        self._running.add(request.request_id)
        try:
            for made, token in enumerate(ids):
                await asyncio.sleep(0)  # where a real engine waits for its next token
                if self._closed:
                    raise EngineShutdown("shut down")
                if request.request_id not in self._running or time.time() >= deadline:
                    ids, finish, stop_id = ids[:made], "cancelled", None
                    break
                yield LLMEngineOutput([token])
            yield LLMEngineOutput(finish_reason=finish, stop_reason=stop_id, usage=Usage(len(prompt), len(ids)))
        finally:
            self._running.discard(request.request_id)

    async def abort(self, request_id: str) -> None:
        self._running.discard(request_id)

    async def drain(self, deadline_seconds: float) -> None:
        self._draining = True
        deadline = time.monotonic() + deadline_seconds
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def cleanup(self) -> None:
        self._closed = True

    def _answer(self, prompt: list[int], stop: StopConditions) -> tuple[list[int], FinishReason, int | None]:
        """The ids of the answer, why it ends there, and the stop id that ended it."""
        words = self._tokenizer.decode(prompt).split()
        reply = self._tokenizer.encode(" ".join(reversed(words)), add_special_tokens=False).ids or prompt
        room = CONTEXT_LENGTH - len(prompt)
        limit = room if stop.max_tokens is None else min(stop.max_tokens, room)
        ids: list[int] = []
        for token in itertools.cycle(reply):
            if len(ids) >= limit:
                break
            if len(ids) >= stop.min_tokens and token in stop.stop_token_ids:
                return ids, "stop", token
            if len(ids) >= max(len(reply), stop.min_tokens) and not stop.ignore_eos:
                return ids, "stop", None
            ids.append(token)
        return ids, "length", None
