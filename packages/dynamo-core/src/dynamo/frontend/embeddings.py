"""``POST /v1/embeddings``: one vector per input, from the engines that can.

Unlike a generation an embedding has one output, so a request is one task; its inputs go to workers a few at a time,
each wherever the router sends it, and again elsewhere when a worker is lost.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.errors import Cancelled, DynamoError, EngineError, InvalidRequest, Retry, StreamIncomplete
from dynamo.frontend.metrics import FrontendMetrics, RequestMetrics
from dynamo.frontend.models import ServedModel, ServedModels
from dynamo.frontend.refusals import Refusals, check_room, request_id
from dynamo.frontend.requests import decode_body
from dynamo.frontend.settings import FrontendSettings
from dynamo.frontend.token_inputs import checked_ids, encode_texts
from dynamo.protocols.addressing import InstanceId
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest, StopConditions, pack_token_ids
from dynamo.protocols.planes import RequestPlane
from dynamo.protocols.routing import RouteRequest
from dynamo.runtime.client import encode_request, stream_items
from dynamo.runtime.context import Context
from dynamo.runtime.http import Exchange
from dynamo.runtime.tracing import Tracing, trace_context

__all__ = ["EmbeddingRequest", "Embeddings"]

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
    priority: int = 0


class _Job(msgspec.Struct):
    """One checked request whose inputs are token ids."""

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
        plane: RequestPlane,
        metrics: FrontendMetrics,
        tracing: Tracing,
        settings: FrontendSettings,
    ) -> None:
        self._models = models
        self._plane = plane
        self._metrics = metrics
        self._tracing = tracing
        self._settings = settings
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: Exchange) -> None:
        """Route handler."""
        with Refusals(self._metrics, exchange, _ENDPOINT):
            check_room(self._metrics, self._settings.max_inflight_requests)
            request = decode_body(exchange.body, EmbeddingRequest)
            _check(request, self._settings.max_embedding_inputs)
            model = self._models.get(request.model)
            if "embedding" not in model.card.types:
                raise InvalidRequest(f"the engine that serves {request.model!r} has no embeddings", param="model")
            task = asyncio.get_running_loop().create_task(self._serve(exchange, request, model))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            exchange.on_disconnect(task.cancel)

    async def close(self) -> None:
        """Stop what is running."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, exchange: Exchange, request: EmbeddingRequest, model: ServedModel) -> None:
        with Refusals(self._metrics, exchange, _ENDPOINT):
            inputs = await _tokenize(request, model)
            job = self._begin(exchange, request, model, inputs)
            with self._counted(exchange, job.metrics):
                vectors = await self._embed_all(job)
                tokens = job.metrics.prompt_tokens
                body = {
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": index, "embedding": vector}
                        for index, vector in enumerate(vectors)
                    ],
                    "model": request.model,
                    "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                }
                exchange.respond_json(200, body)

    def _begin(
        self,
        exchange: Exchange,
        request: EmbeddingRequest,
        model: ServedModel,
        inputs: list[npt.NDArray[np.uint32]],
    ) -> _Job:
        name = f"embd-{request_id(exchange)}"
        attributes = {"request_id": name, "gen_ai.request.model": model.name}
        span = self._tracing.span(_ENDPOINT, trace_context(exchange.headers), attributes)
        metrics = self._metrics.begin(model.name, _ENDPOINT, name, span, stream=False)
        metrics.prompt_tokens = sum(map(len, inputs))
        return _Job(name, request, model, inputs, metrics, time.time() + self._settings.request_timeout_seconds)

    @contextlib.contextmanager
    def _counted(self, exchange: Exchange, metrics: RequestMetrics) -> Iterator[None]:
        """Ends `metrics` once, and answers with the error if there is one."""
        try:
            yield
        except DynamoError as error:
            exchange.respond_error(error)
            metrics.end(error.http_status, error.code)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                metrics.cancelled()
            metrics.end(500, EngineError.code)
            raise
        else:
            metrics.end(200)

    async def _embed_all(self, job: _Job) -> list[msgspec.Raw]:
        """The vectors of all inputs as JSON, in order; the first failure ends the others."""
        vectors = [msgspec.Raw()] * len(job.inputs)
        waiting = iter(range(len(job.inputs)))

        async def work() -> None:
            for index in waiting:
                vectors[index] = _body(await self._embed(job, index), job.request.encoding_format)

        await _all_or_none(work() for _ in range(min(self._settings.embedding_concurrency, len(job.inputs))))
        return vectors

    async def _embed(self, job: _Job, index: int) -> bytes:
        """The packed vector of one input, from whichever worker can."""
        request = PreprocessedRequest(
            request_id=f"{job.id}-{index}",
            model=job.model.name,
            token_ids=pack_token_ids(job.inputs[index]),
            stop=StopConditions(max_tokens=1),
            cache_salt=job.request.cache_salt,
            priority=job.request.priority,
            deadline_unix_seconds=job.deadline_unix_seconds,
            trace=job.metrics.span.context,
            embed=True,
        )
        failed: frozenset[InstanceId] = frozenset()
        while True:
            route = RouteRequest(
                request_id=request.request_id,
                model=request.model,
                prompt_tokens=len(job.inputs[index]),
                priority=request.priority,
                excluded=failed,
            )
            candidate = job.model.candidates.select(route, time.monotonic())
            request.dp_rank = candidate.key.dp_rank
            candidate.sent()
            try:
                vector = await self._ask(candidate.record, request)
            except DynamoError as error:
                candidate.failed(error, time.monotonic())
                late = time.time() >= job.deadline_unix_seconds
                if error.retry is not Retry.OTHER_WORKER or len(failed) >= self._settings.migration_limit or late:
                    raise
                failed |= {candidate.key.instance_id}
                job.metrics.migrated()
            else:
                candidate.breaker.succeeded()
                return vector
            finally:
                candidate.ended()
