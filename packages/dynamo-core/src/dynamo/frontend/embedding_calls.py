"""Gets one embedding from a worker, and from another one when the first is lost."""

from __future__ import annotations

import time

from dynamo.errors import DynamoError, EngineError, Retry, StreamIncomplete
from dynamo.frontend.metrics import RequestMetrics
from dynamo.frontend.models import ServedModel
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.planes import RequestPlane
from dynamo.protocols.routing import RouteRequest
from dynamo.runtime.client import encode_request, stream_items
from dynamo.runtime.context import Context
from dynamo.runtime.server import closing

__all__ = ["EmbeddingCalls"]


class EmbeddingCalls:
    """Used by `dynamo.frontend.embeddings` for every input of every request."""

    def __init__(self, plane: RequestPlane, migration_limit: int) -> None:
        self._plane = plane
        self._migration_limit = migration_limit

    async def embed(self, model: ServedModel, request: PreprocessedRequest, metrics: RequestMetrics) -> bytes:
        """The vector of ``request.token_ids``, packed little-endian float32. Cancelling the task frees the engine.

        Raises:
            NoInstances: nobody can take the request.
            DynamoError: the engine refuses it, or too many workers were lost.
        """
        failed: frozenset[int] = frozenset()
        tries_left = self._migration_limit
        while True:
            route = RouteRequest(
                request_id=request.request_id,
                model=request.model,
                prompt_tokens=len(request.token_ids) // 4,
                lora=request.lora,
                priority=request.priority,
                excluded=failed,
            )
            candidate = model.candidates.select(route, time.monotonic())
            request.dp_rank = candidate.key.dp_rank
            probe = candidate.sent()
            try:
                vector = await self._ask(candidate.record, request)
            except DynamoError as error:
                candidate.failed(error, time.monotonic(), probe)
                if tries_left <= 0 or not _may_go_elsewhere(error, request):
                    raise
                # Counted, since a lone worker is asked again although it has failed.
                tries_left -= 1
                failed |= {candidate.key.instance_id}
                metrics.migrated()
            else:
                candidate.breaker.succeeded()
                return vector
            finally:
                candidate.ended(probe)

    async def _ask(self, worker: InstanceRecord, request: PreprocessedRequest) -> bytes:
        context = Context(request.request_id, deadline_unix_seconds=request.deadline_unix_seconds, trace=request.trace)
        vector: bytes | None = None
        items = stream_items(self._plane, worker, encode_request(request), context, LLMEngineOutput)
        async with closing(items):
            async for output in items:
                if output.finish_reason == "error":
                    raise EngineError("the engine reported an error")
                vector = output.embedding or vector
        if vector is None:
            raise StreamIncomplete("the worker ended the stream without an embedding")
        return vector


def _may_go_elsewhere(error: DynamoError, request: PreprocessedRequest) -> bool:
    deadline = request.deadline_unix_seconds
    return error.retry is Retry.OTHER_WORKER and (deadline is None or time.time() < deadline)
