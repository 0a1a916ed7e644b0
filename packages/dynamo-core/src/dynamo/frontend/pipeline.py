"""The life of one generating request: decode, check, template, tokenize, and hand over to an answer.

Endpoints with request and answer formats of their own (responses, messages) translate theirs to a `ChatRequest` and
come in at `Pipeline.begin_chat`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.answers import Answer, create_answer
from dynamo.frontend.deltas import DeltaReader
from dynamo.frontend.formats import ChatFormat, CompletionFormat
from dynamo.frontend.generation import Generation, Services
from dynamo.frontend.metrics import FrontendMetrics, RequestMetrics
from dynamo.frontend.models import ServedModel, ServedModels
from dynamo.frontend.nvext import Nvext, annotation_events, extra_body
from dynamo.frontend.placement import Placement, explaining, request_placement
from dynamo.frontend.preparation import Preparations
from dynamo.frontend.prompts import Prompt, Prompts, chat_prompts, completion_prompts, prompt_count
from dynamo.frontend.refusals import Ending, Refusals, check_room, request_id
from dynamo.frontend.request_log import RequestLog
from dynamo.frontend.requests import (
    ChatRequest,
    CommonParameters,
    CompletionRequest,
    check_chat,
    check_common,
    check_completion,
    decode_body,
    take_hints,
)
from dynamo.frontend.sampling import guided_decoding, sampling_options, stop_conditions, stop_strings
from dynamo.frontend.settings import FrontendSettings
from dynamo.frontend.tools import chat_parser, check_tools, tool_grammar
from dynamo.parsers import OutputParser
from dynamo.preprocessor.detokenizer import Detokenizer
from dynamo.protocols.llm import GuidedDecoding, PreprocessedRequest, SamplingOptions, pack_token_ids
from dynamo.protocols.planes import RequestPlane
from dynamo.runtime.http import Exchange
from dynamo.runtime.tracing import Tracing, trace_context

__all__ = ["ChatCall", "MakeAnswer", "Pipeline"]

#: The detokenizer needs the end of the prompt to know whether the first token keeps its leading space.
_PROMPT_TAIL_TOKENS = 16

#: Makes the answer of a request whose prompts are known.
MakeAnswer: TypeAlias = Callable[[ServedModel, list[Prompt], RequestMetrics], Answer]


class ChatCall(msgspec.Struct):
    """A chat, whatever endpoint it came in at."""

    exchange: Exchange
    endpoint: str
    """For metrics and traces."""
    id: str
    request: ChatRequest
    make_answer: MakeAnswer


class _Job(msgspec.Struct):
    """One checked request on its way to an answer."""

    exchange: Exchange
    endpoint: str
    id: str
    request: CommonParameters
    model: ServedModel
    max_tokens: int | None
    make_answer: MakeAnswer
    guided: GuidedDecoding | None = None
    prompt_logprobs: int | None = None
    make_parser: Callable[[Prompt], OutputParser | None] | None = None


class Pipeline:
    """Serves ``/v1/chat/completions`` and ``/v1/completions``."""

    def __init__(
        self,
        models: ServedModels,
        plane: RequestPlane,
        metrics: FrontendMetrics,
        tracing: Tracing,
        settings: FrontendSettings,
        request_log: RequestLog | None = None,
    ) -> None:
        self._models = models
        self._tracing = tracing
        self._services = Services(
            plane, tracing, settings.migration_limit, settings.migration_wait_seconds, request_log
        )
        self._metrics = metrics
        self._settings = settings
        self._preparations = Preparations(metrics)

    def chat(self, exchange: Exchange) -> None:
        """Route handler of chat completions."""
        with Refusals(self._metrics, exchange, "chat_completions"):
            answer_id = f"chatcmpl-{request_id(exchange)}"
            check_room(self._metrics, self._settings.max_inflight_requests)
            request = decode_body(exchange.body, ChatRequest, strict=self._settings.strict)

            def make_answer(model: ServedModel, prompts: list[Prompt], metrics: RequestMetrics) -> Answer:
                chat_format = ChatFormat(
                    answer_id,
                    request.model,
                    int(time.time()),
                    model.text.tokenizer,
                    include_usage=_include_usage(request),
                    logprobs=bool(request.logprobs),
                )
                if request.nvext is not None:
                    chat_format.extend(extra_body(request.nvext, metrics), _annotations(request.nvext, prompts))
                choices = len(prompts) * (request.n or 1)
                return create_answer(exchange, chat_format, metrics, stream=request.stream, choices=choices)

            self.begin_chat(ChatCall(exchange, "chat_completions", answer_id, request, make_answer))

    def completions(self, exchange: Exchange) -> None:
        """Route handler of completions."""
        with Refusals(self._metrics, exchange, "completions"):
            answer_id = f"cmpl-{request_id(exchange)}"
            check_room(self._metrics, self._settings.max_inflight_requests)
            request = decode_body(exchange.body, CompletionRequest, strict=self._settings.strict)
            take_hints(request)
            check_common(request, max_stop_strings=self._settings.max_stop_strings)
            model = self._models.get(request.model)
            check_completion(request, model.context_length_tokens)
            # Before anything is tokenized: thousands of prompts in one body are refused for free.
            self._check_choices(request.n or 1, prompt_count(request))

            def make_answer(model: ServedModel, prompts: list[Prompt], metrics: RequestMetrics) -> Answer:
                echoes = [prompt.text if request.echo else "" for prompt in prompts for _ in range(request.n or 1)]
                completion_format = CompletionFormat(
                    answer_id,
                    request.model,
                    int(time.time()),
                    model.text.tokenizer,
                    include_usage=_include_usage(request),
                    logprobs=request.logprobs is not None,
                    echoes=echoes,
                )
                if request.nvext is not None:
                    completion_format.extend(extra_body(request.nvext, metrics), _annotations(request.nvext, prompts))
                return create_answer(exchange, completion_format, metrics, stream=request.stream, choices=len(echoes))

            guided = guided_decoding(request, model.card.capabilities.guided)
            job = _Job(exchange, "completions", answer_id, request, model, request.max_tokens, make_answer, guided)
            if request.echo:
                job.prompt_logprobs = request.logprobs
            self._begin(job, completion_prompts(request, model))

    def begin_chat(self, call: ChatCall) -> None:
        """Check a chat and start it; what goes wrong from here on is answered, or raised.

        Raises:
            InvalidRequest: a field is out of range; `param` is its name in chat completions.
            ModelNotFound, NoInstances: the model cannot be used.
        """
        request = call.request
        take_hints(request)
        check_common(request, max_stop_strings=self._settings.max_stop_strings)
        check_chat(request)
        check_tools(request)
        self._check_choices(request.n or 1, prompts=1)
        model = self._models.get(request.model)
        limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        supported = model.card.capabilities.guided
        guided = guided_decoding(request, supported) or tool_grammar(request, supported)
        job = _Job(call.exchange, call.endpoint, call.id, request, model, limit, call.make_answer, guided)
        job.make_parser = lambda prompt: chat_parser(request, model, prompt.text)
        self._begin(job, chat_prompts(request, model, len(call.exchange.body)))

    async def close(self) -> None:
        """Stop what is being prepared."""
        await self._preparations.close()

    def _check_choices(self, choices: int, prompts: int) -> None:
        total, limit = choices * prompts, self._settings.max_choices
        if total > limit:
            raise InvalidRequest(
                f"{total} choices are asked for; at most {limit} are allowed", param="n" if choices > 1 else "prompt"
            )

    def _begin(self, job: _Job, prompts: Prompts) -> None:
        if isinstance(prompts, list):
            self._start(job, prompts)
        else:
            self._preparations.begin(job.exchange, job.endpoint, prompts, partial(self._start, job))

    def _start(self, job: _Job, prompts: list[Prompt]) -> None:
        """Make one generation per prompt and choice, and an answer that follows them."""
        request, model = job.request, job.model
        limits = [_token_limit(prompt, job.max_tokens, model.context_length_tokens) for prompt in prompts]
        placement = request_placement(
            job.exchange.headers,
            request.priority,
            request.nvext,
            overrides_for_all=model.candidates.overrides_for_all,
            pins_for_all=model.candidates.pins_for_all,
        )
        span = self._tracing.span(
            job.endpoint,
            trace_context(job.exchange.headers),
            {"request_id": job.id, "gen_ai.request.model": model.name},
        )
        metrics = self._metrics.begin(model.name, job.endpoint, job.id, span, stream=request.stream)
        metrics.prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        with Ending(metrics, job.exchange):
            answer = job.make_answer(model, prompts, metrics)
            generations = self._generations(job, prompts, limits, placement, answer, metrics)
            if request.nvext is None:
                answer.begin(generations, request.n or 1)
                return
            with explaining(request.nvext, metrics, explains_to_all=model.candidates.explains_to_all):
                answer.begin(generations, request.n or 1)

    def _generations(
        self,
        job: _Job,
        prompts: list[Prompt],
        limits: list[int],
        placement: Placement,
        answer: Answer,
        metrics: RequestMetrics,
    ) -> list[Generation]:
        request, model = job.request, job.model
        choices = request.n or 1
        stops = stop_strings(request)
        generations = []
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            template = self._engine_request(job, prompt, limit, placement.place.priority)
            tail = prompt.token_ids[-_PROMPT_TAIL_TOKENS:].tolist()
            for index in range(choices):
                choice = number * choices + index
                engine_request = msgspec.structs.replace(
                    template,
                    request_id=f"{job.id}-{choice}" if choice else job.id,
                    sampling=_sampling(job, index),
                )
                parser = job.make_parser(prompt) if job.make_parser is not None else None
                detokenizer = Detokenizer(
                    model.text.tokenizer,
                    stop_strings=stops,
                    skip_special_tokens=parser is None or not parser.needs_special_tokens,
                    prompt_tail=tail,
                    min_tokens=request.min_tokens or 0,
                )
                generations.append(
                    Generation(
                        choice,
                        engine_request,
                        model,
                        DeltaReader(detokenizer, parser, model.text.tokenizer),
                        answer,
                        metrics,
                        self._services,
                        placement._replace(prefix=prompt.prefix) if prompt.prefix else placement,
                    )
                )
        return generations

    def _engine_request(self, job: _Job, prompt: Prompt, max_tokens: int, priority: int) -> PreprocessedRequest:
        return PreprocessedRequest(
            request_id=job.id,
            model=job.model.name,
            token_ids=pack_token_ids(prompt.token_ids),
            stop=stop_conditions(job.request, max_tokens),
            lora=job.model.lora,
            cache_salt=job.request.cache_salt,
            # Engines go by it too: who may not push in here may not do so there.
            priority=priority,
            guided=job.guided,
            deadline_unix_seconds=time.time() + self._settings.request_timeout_seconds,
        )


def _token_limit(prompt: Prompt, wanted: int | None, context_length: int) -> int:
    """Tokens that this prompt may be answered with: what the client wants, bounded by the context."""
    length = len(prompt.token_ids)
    if not length:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    room = context_length - length
    if room < 1:
        raise InvalidRequest(
            f"this model's context is {context_length} tokens; the prompt has {length}",
            param="messages",
            reason="context_length_exceeded",
        )
    return room if wanted is None else min(wanted, room)


def _sampling(job: _Job, index: int) -> SamplingOptions:
    options = sampling_options(job.request, job.model.text.default_sampling, index)
    if job.prompt_logprobs is None:
        return options
    return msgspec.structs.replace(options, prompt_logprobs=job.prompt_logprobs)


def _annotations(nvext: Nvext, prompts: list[Prompt]) -> bytes:
    if not nvext.annotations:
        return b""
    return annotation_events(nvext, [prompt.text for prompt in prompts], [p.token_ids.tolist() for p in prompts])


def _include_usage(request: CommonParameters) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_usage)
