"""``POST /v1/embeddings``: one vector per input, from the engines that can.

Unlike a generation an embedding has one output, so a request is one task; its inputs go to workers a few at a time,
each wherever the router sends it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.errors import DynamoError, EngineError, InvalidRequest
from dynamo.frontend.body_bounds import check_ids_length
from dynamo.frontend.embedding_calls import EmbeddingCalls
from dynamo.frontend.metrics import FrontendMetrics, RequestMetrics
from dynamo.frontend.models import ServedModel, ServedModels
from dynamo.frontend.preparation import Preparations
from dynamo.frontend.queue_place import queue_place
from dynamo.frontend.refusals import Refusals, check_room, request_id
from dynamo.frontend.requests import Priority, decode_body
from dynamo.frontend.settings import FrontendSettings
from dynamo.frontend.token_inputs import check_texts_fit, checked_id_lists, encode_texts
from dynamo.protocols.llm import PreprocessedRequest, StopConditions, pack_token_ids
from dynamo.runtime.http import Exchange
from dynamo.runtime.tasks import Tasks
from dynamo.runtime.tracing import Tracing, trace_context

__all__ = ["EmbeddingRequest", "Embeddings"]

logger = logging.getLogger(__name__)

_ENDPOINT = "embeddings"
_json = msgspec.json.Encoder().encode


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """``POST /v1/embeddings``."""

    model: str
    input: str | list[str | int | list[int]]
    """A text, texts, token ids, or lists of token ids."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    cache_salt: str | None = None
    priority: Priority = 0


class _Job(msgspec.Struct):
    """One checked request on its way."""

    id: str
    request: EmbeddingRequest
    model: ServedModel
    inputs: list[npt.NDArray[np.uint32]]
    metrics: RequestMetrics
    deadline_unix_seconds: float


class Embeddings:
    """The route handler and its running requests."""

    def __init__(
        self,
        models: ServedModels,
        calls: EmbeddingCalls,
        metrics: FrontendMetrics,
        tracing: Tracing,
        settings: FrontendSettings,
    ) -> None:
        self._models = models
        self._calls = calls
        self._metrics = metrics
        self._tracing = tracing
        self._settings = settings
        self._preparations = Preparations(metrics)
        self._tasks = Tasks()

    def handle(self, exchange: Exchange) -> None:
        """Route handler."""
        with Refusals(self._metrics, exchange, _ENDPOINT):
            check_room(self._metrics, self._settings.max_inflight_requests)
            request = decode_body(exchange.body, EmbeddingRequest, strict=self._settings.strict)
            model = self._models.get(request.model)
            _check(request, self._settings.max_embedding_inputs, model.context_length_tokens)
            if "embedding" not in model.card.types:
                raise InvalidRequest(f"the engine that serves {request.model!r} has no embeddings", param="model")
            start = partial(self._start, exchange, request, model)
            self._preparations.begin(exchange, _ENDPOINT, _tokenize(request, model), start)

    async def close(self) -> None:
        """Stop what is running."""
        await self._preparations.close()
        await self._tasks.cancel()

    def _start(
        self, exchange: Exchange, request: EmbeddingRequest, model: ServedModel, inputs: list[npt.NDArray[np.uint32]]
    ) -> None:
        task = self._tasks.spawn(self._serve(exchange, request, model, inputs))
        exchange.on_disconnect(lambda: _cancel(task))

    async def _serve(
        self, exchange: Exchange, request: EmbeddingRequest, model: ServedModel, inputs: list[npt.NDArray[np.uint32]]
    ) -> None:
        with Refusals(self._metrics, exchange, _ENDPOINT):
            name = f"embd-{request_id(exchange)}"
            attributes = {"request_id": name, "gen_ai.request.model": model.name}
            span = self._tracing.span(_ENDPOINT, trace_context(exchange.headers), attributes)
            metrics = self._metrics.begin(model.name, _ENDPOINT, name, span, stream=False)
            metrics.prompt_tokens = sum(map(len, inputs))
            deadline = time.time() + self._settings.request_timeout_seconds
            with _ending(exchange, metrics):
                vectors = await self._embed_all(_Job(name, request, model, inputs, metrics, deadline))
                exchange.respond_json(200, _answer(request.model, vectors, metrics.prompt_tokens))

    async def _embed_all(self, job: _Job) -> list[msgspec.Raw]:
        """The vectors of all inputs as JSON, in order; the first failure ends the others."""
        vectors = [msgspec.Raw()] * len(job.inputs)
        waiting = iter(range(len(job.inputs)))

        async def work() -> None:
            # Each vector becomes JSON when it comes: two thousand of them at once would hold up every stream.
            for index in waiting:
                packed = await self._calls.embed(job.model, _engine_request(job, index), job.metrics)
                vectors[index] = _vector_body(packed, job.request.encoding_format)

        await _all_or_none(work() for _ in range(min(self._settings.embedding_concurrency, len(job.inputs))))
        return vectors


@contextlib.contextmanager
def _ending(exchange: Exchange, metrics: RequestMetrics) -> Iterator[None]:
    """Whatever happens inside: the client is answered, and the request counted, once."""
    try:
        yield
    except asyncio.CancelledError:
        metrics.cancelled()
        metrics.end(499)
        raise
    except DynamoError as error:
        exchange.respond_error(error)
        metrics.end(error.http_status, error.code)
    except Exception:
        logger.exception("an embedding request failed")
        exchange.respond_error(EngineError("internal error; the server's log has the details"))
        metrics.end(500, EngineError.code)
    else:
        metrics.end(200)


async def _all_or_none(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; when one fails, or the caller is cancelled, end the others before that goes on."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tokenize(request: EmbeddingRequest, model: ServedModel) -> list[npt.NDArray[np.uint32]]:
    tokenizer = model.text.tokenizer
    # All parts are of one type: see `_check`.
    parts: Any = [request.input] if isinstance(request.input, str) else request.input
    if isinstance(parts[0], str):
        await check_texts_fit(tokenizer, parts, model.context_length_tokens, "an input", "input")
        inputs = await encode_texts(tokenizer, parts, add_special_tokens=True)
    else:
        lists = [parts] if isinstance(parts[0], int) else parts
        for index, ids in enumerate(lists):
            check_ids_length(ids, model.context_length_tokens, f"input {index}", "input")
        inputs = await checked_id_lists(tokenizer, lists, "input")
    for index, found in enumerate(inputs):
        if not len(found):
            raise InvalidRequest(f"input {index} has no tokens", param="input")
        check_ids_length(found, model.context_length_tokens, f"input {index}", "input")
    return inputs


def _engine_request(job: _Job, index: int) -> PreprocessedRequest:
    return PreprocessedRequest(
        request_id=f"{job.id}-{index}",
        model=job.model.name,
        token_ids=pack_token_ids(job.inputs[index]),
        stop=StopConditions(max_tokens=1),
        lora=job.model.lora,
        cache_salt=job.request.cache_salt,
        priority=queue_place({}, job.request.priority).priority,
        deadline_unix_seconds=job.deadline_unix_seconds,
        trace=job.metrics.span.context,
        embed=True,
    )


def _answer(model: str, vectors: list[msgspec.Raw], tokens: int) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _vector_body(packed: bytes, encoding_format: str) -> msgspec.Raw:
    """JSON of one vector: OpenAI's base64 is of the same little-endian float32 that engines give."""
    if encoding_format == "base64":
        return msgspec.Raw(_json(base64.b64encode(packed).decode()))
    return msgspec.Raw(_json(np.frombuffer(packed, dtype="<f4").tolist()))


def _check(request: EmbeddingRequest, max_inputs: int, context_length_tokens: int) -> None:
    if request.dimensions is not None:
        raise InvalidRequest("'dimensions' is not supported: vectors come as the model makes them", param="dimensions")
    parts = [request.input] if isinstance(request.input, str) else request.input
    if not parts:
        raise InvalidRequest("'input' must not be empty", param="input")
    # Lengths first: what there may be millions of is not walked through.
    if isinstance(parts[0], int):
        check_ids_length(parts, context_length_tokens, "input 0", "input")
    elif len(parts) > max_inputs:
        raise InvalidRequest(f"'input' has {len(parts)} inputs; at most {max_inputs} are allowed", param="input")
    if "" in parts:
        raise InvalidRequest("texts of 'input' must not be empty", param="input")
    if len(set(map(type, parts))) > 1:
        raise InvalidRequest("'input' mixes texts and token ids", param="input")


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
