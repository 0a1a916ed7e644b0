"""One choice of one answer: routes it, follows its stream, moves it to another worker when its own is lost.

Everything here runs in plane callbacks: no task and no queue per token. One call brings all tokens that have arrived
since the last one, and leads to at most one call of the consumer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from dynamo.errors import DynamoError, EngineError, NoInstances, ResponseTimeout, Retry, StreamIncomplete
from dynamo.frontend.deltas import Delta, DeltaReader
from dynamo.frontend.metrics import RequestMetrics
from dynamo.frontend.models import ServedModel
from dynamo.frontend.placement import Placement
from dynamo.frontend.request_log import RequestEntry, RequestLog
from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.claims import Claim
from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest, Usage, pack_token_ids
from dynamo.protocols.planes import PlaneStream, RequestPlane
from dynamo.protocols.routing import PromptHashes, RouteRequest
from dynamo.router.queue import QueuedRequest, RouterQueue
from dynamo.router.route import Route
from dynamo.runtime.context import Context
from dynamo.runtime.tracing import Span, Tracing

__all__ = ["Generation", "GenerationConsumer", "Services"]

logger = logging.getLogger(__name__)

#: Between looks for a worker that a stream could go on at.
_WAIT_POLL_SECONDS = 0.1

_decode = msgspec.msgpack.Decoder(LLMEngineOutput).decode
_encode = msgspec.msgpack.Encoder().encode


class GenerationConsumer(Protocol):
    """Who turns a generation into an HTTP response. Exactly one of `on_finish` and `on_failure` is called, last."""

    def on_delta(self, choice: int, delta: Delta) -> None:
        """New text."""
        ...

    def on_finish(self, choice: int, reason: str, usage: Usage) -> None:
        """The choice is complete."""
        ...

    def on_failure(self, choice: int, error: DynamoError) -> None:
        """The choice cannot be completed."""
        ...


class Services(NamedTuple):
    """What all generations of a frontend use."""

    plane: RequestPlane
    tracing: Tracing
    migration_limit: int
    migration_wait_seconds: float
    request_log: RequestLog | None = None


class Generation:
    """Implements `dynamo.protocols.planes.ResponseSink` for one choice."""

    def __init__(
        self,
        choice: int,
        request: PreprocessedRequest,
        model: ServedModel,
        reader: DeltaReader,
        consumer: GenerationConsumer,
        metrics: RequestMetrics,
        services: Services,
        placement: Placement,
    ) -> None:
        self.choice = choice
        self._request = request
        self._model = model
        self._reader = reader
        self._consumer = consumer
        self._plane = services.plane
        self._metrics = metrics
        self._tracing = services.tracing
        self._span: Span | None = None
        self._migrations_left = services.migration_limit
        self._wait_seconds = services.migration_wait_seconds
        self._request_log = services.request_log
        self._migrations = 0
        self._prompt_tokens = len(request.token_ids) // 4
        self._failed_instances: frozenset[int] = frozenset()
        self._route: Route | None = None
        self._placement = placement
        self._queue: RouterQueue | None = None
        self._queued: QueuedRequest | None = None
        self._context: Context | None = None
        self._stream: PlaneStream | None = None
        self._paused = False
        self._done = False

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the choice, if one did."""
        return self._reader.stop_string

    def start(self) -> None:
        """Go to a worker; where the router has a queue, when it is this request's turn. Failures go to the consumer."""
        queue = self._model.candidates.queue
        if queue is None:
            self.admitted()
            return
        self._queue = queue
        try:
            self._queued = queue.enter(self._route_request(), self)
        except DynamoError as error:
            self._fail(error)
            return
        except Exception as error:
            logger.exception("request %s could not be let into the queue", self._request.request_id)
            self._fail_inside(error)
            return
        if self._queued is None:
            self.admitted()

    def admitted(self) -> None:
        """See `dynamo.router.queue.QueueUser`."""
        self._try(self._ask)

    def _ask(self) -> None:
        """Choose a worker; before that, let one come forward, where the router takes who does."""
        request = self._route_request()
        claim = self._model.candidates.claim(request, time.monotonic())
        if claim is None:
            self._send(request)
        else:
            claim.add_done_callback(lambda answer: self._claimed(request, answer.result()))

    def _claimed(self, request: RouteRequest, claim: Claim | None) -> None:
        if not self._done:
            self._try(lambda: self._send(msgspec.structs.replace(request, claim=claim)))

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except DynamoError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("request %s could not be sent to a worker", self._request.request_id)
            self._fail_inside(error)

    def refused(self, error: DynamoError) -> None:
        """See `dynamo.router.queue.QueueUser`."""
        self._fail(error)

    def _route_request(self) -> RouteRequest:
        request = self._request
        place, hints, pinned, prefix = self._placement
        return RouteRequest(
            request_id=request.request_id,
            model=self._model.name,
            prompt_tokens=len(request.token_ids) // 4,
            lora=request.lora,
            priority=place.router_priority,
            # When the chosen worker is lost, another one is better than none.
            pinned=None if self._failed_instances else pinned,
            excluded=self._failed_instances,
            prompt=PromptHashes(request.token_ids, request.lora, request.cache_salt, prefix),
            tenant=place.tenant,
            ttft_target_seconds=place.ttft_target_seconds,
            session=hints.session,
            overrides=hints.overrides,
        )

    def _send(self, route_request: RouteRequest) -> None:
        """Choose a worker and send it the request.

        Raises:
            NoInstances: nobody can take the request.
            Overloaded: all workers are busy.
        """
        request = self._request
        route = self._model.candidates.route(route_request, time.monotonic())
        request.dp_rank = route.worker.dp_rank
        self._metrics.worker = route.worker
        self._route = route
        worker = format_instance_id(route.worker.instance_id)
        self._span = self._tracing.span("route", self._metrics.span.context, {"worker": worker, "choice": self.choice})
        request.trace = self._span.context
        self._context = Context(
            request.request_id, deadline_unix_seconds=request.deadline_unix_seconds, trace=request.trace
        )
        self._stream = self._plane.send(route.record, _encode(request), self, self._context)
        if self._paused:
            # A client that was too slow for the first worker is so for the next one.
            self._stream.pause()

    def cancel(self) -> None:
        """Stop: the client is gone, or another choice failed. The consumer hears nothing more."""
        if not self._done:
            self._metrics.cancelled()
            self._end("cancelled", stop_engine=True)

    def pause(self) -> None:
        """The client reads too slowly."""
        self._paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._paused = False
        if self._stream is not None:
            self._stream.resume()

    # Plane callbacks

    def on_items(self, items: list[bytes]) -> None:
        """Outputs of the engine."""
        if self._done:
            return
        assert self._context is not None
        if self._context.cancelled:
            return
        if self._route is not None:
            self._route.answered(time.monotonic())
        try:
            output = _decode(items[0])
            for item in items[1:]:
                _merge(output, _decode(item))
        except msgspec.MsgspecError as error:
            # The stream has a hole now: its worker is told to end it, and `on_end` goes on elsewhere.
            logger.warning("request %s: the worker sent what is no output: %s", self._request.request_id, error)
            self._context.cancel()
            return
        self._take(output)

    def on_end(self) -> None:
        """The worker ended the stream; that is only right after a finish reason."""
        if self._done:
            return
        if self._out_of_time():
            self.on_error(ResponseTimeout("the request's deadline has passed"))
        else:
            self.on_error(StreamIncomplete("the worker ended the stream without a finish reason"))

    def on_error(self, error: DynamoError) -> None:
        """The worker failed: go on elsewhere if that is allowed, else tell the client."""
        if self._done:
            return
        if self._route is not None:
            self._route.failed(error, time.monotonic())
        if self._span is not None:
            self._span.end(error.code)
        self._release()
        if error.retry is Retry.OTHER_WORKER and self._has_all_tokens():
            # Only the finish reason was lost, and no engine takes a request for no token.
            self._take(LLMEngineOutput(finish_reason="length"))
            return
        if not self._may_migrate(error):
            self._fail(error)
            return
        if self._route is not None:
            self._failed_instances |= {self._route.worker.instance_id}
        self._migrations_left -= 1
        self._migrations += 1
        self._metrics.migrated()
        logger.info(
            "request %s goes on at another worker after %d tokens: %s",
            self._request.request_id,
            len(self._reader.token_ids),
            error.message,
            extra={"request_id": self._request.request_id},
        )
        self._request = self._continuation()
        self._go_on(error, time.monotonic() + self._wait_seconds)

    def _go_on(self, error: DynamoError, until: float) -> None:
        """Start again, waiting for a worker to appear: one that was killed is often back within a few seconds.

        Its turn in the queue has been: the client is in the middle of its answer.
        """
        if self._done:
            return
        try:
            # Nobody is asked to claim it: the client has waited long enough.
            self._send(self._route_request())
        except NoInstances as nobody:
            if time.monotonic() < until and not self._out_of_time():
                asyncio.get_running_loop().call_later(_WAIT_POLL_SECONDS, self._go_on, error, until)
                return
            nobody.__cause__ = error
            self._fail(nobody)
        except DynamoError as routing_error:
            routing_error.__cause__ = error
            self._fail(routing_error)
        except Exception as inner:
            logger.exception("request %s could not be sent to another worker", self._request.request_id)
            self._fail_inside(inner)

    def _fail_inside(self, error: Exception) -> None:
        """A plugin may raise anything; the request must still end, and be counted as ended."""
        failure = EngineError("internal error; the server's log has the details")
        failure.__cause__ = error
        self._fail(failure)

    def _take(self, output: LLMEngineOutput) -> None:
        try:
            self._deliver(output)
        except Exception as error:
            # A parser's mistake is the same with every worker: the stream does not go on at another one.
            logger.exception("the output of request %s could not be read", self._request.request_id)
            self._fail_inside(error)

    def _deliver(self, output: LLMEngineOutput) -> None:
        if output.token_ids:
            self._metrics.tokens(len(output.token_ids))
        reason = output.finish_reason
        if reason == "error":
            self.on_error(EngineError("the engine reported an error"))
            return
        delta = self._reader.read(output)
        if delta is not None:
            self._consumer.on_delta(self.choice, delta)
        # What nobody here cancelled is not complete: the end of the stream, which follows, says what it is.
        if self._reader.stop_string is not None or reason not in (None, "cancelled"):
            self._finish(reason or "stop")

    def _finish(self, reason: str) -> None:
        if self._done:
            return
        reason = self._reader.finish_reason(reason)
        self._end(reason, stop_engine=self._reader.stop_string is not None)
        self._consumer.on_finish(self.choice, reason, self._reader.usage(self._prompt_tokens))

    def _fail(self, error: DynamoError) -> None:
        if not self._done:
            self._end(error.code, stop_engine=True)
            self._consumer.on_failure(self.choice, error)

    def _end(self, reason: str, *, stop_engine: bool) -> None:
        self._done = True
        if self._request_log is not None:
            self._request_log.write(self._log_entry(reason))
        if self._queue is not None and self._queued is not None:
            self._queue.leave(self._queued)
        if self._span is not None:
            self._span.end()
        self._release()
        if stop_engine and self._context is not None:
            self._context.cancel()
        # The stream leads back here: what stays in a circle waits for the garbage collector, with prompt and body.
        self._stream = self._context = None

    def _log_entry(self, reason: str) -> RequestEntry:
        request, metrics, route = self._request, self._metrics, self._route
        elapsed = metrics.elapsed_seconds()
        return RequestEntry(
            request_id=request.request_id,
            arrival_unix_seconds=time.time() - elapsed,
            endpoint=metrics.endpoint,
            model=self._model.base_name,
            lora=request.lora,
            cache_salt=request.cache_salt,
            priority=request.priority,
            api_key_name=metrics.api_key_name,
            block_size=self._model.card.block_size_tokens,
            prompt=request.token_ids[: 4 * self._prompt_tokens],
            output=self._reader.token_ids,
            cached_tokens=self._reader.cached_tokens,
            finish_reason=reason,
            first_token_seconds=metrics.first_token_seconds(),
            duration_seconds=elapsed,
            migrations=self._migrations,
            worker="" if route is None else f"{format_instance_id(route.worker.instance_id)}:{route.worker.dp_rank}",
            tokenizer=self._model.text.tokenizer,
        )

    def _release(self) -> None:
        if self._route is not None:
            self._route.end()

    def _out_of_time(self) -> bool:
        deadline = self._request.deadline_unix_seconds
        return deadline is not None and time.time() >= deadline

    def _has_all_tokens(self) -> bool:
        limit = self._request.stop.max_tokens
        return limit is not None and len(self._reader.token_ids) - self._request.prior_output_tokens >= max(1, limit)

    def _may_migrate(self, error: DynamoError) -> bool:
        if error.retry is not Retry.OTHER_WORKER or self._migrations_left <= 0:
            return False
        if self._out_of_time():
            return False
        return not self._reader.token_ids or (self._model.card.capabilities.resume and self._request.guided is None)

    def _continuation(self) -> PreprocessedRequest:
        """The same request with the tokens so far behind the prompt."""
        request, token_ids = self._request, self._reader.token_ids
        if self._reader.has_prompt_logprobs:
            # The answer so far is part of the next prompt, and the client has those of its own.
            request = msgspec.structs.replace(
                request, sampling=msgspec.structs.replace(request.sampling, prompt_logprobs=None)
            )
        new_tokens = len(token_ids) - request.prior_output_tokens
        if not new_tokens:
            return request
        stop = request.stop
        remaining = None if stop.max_tokens is None else stop.max_tokens - new_tokens
        return msgspec.structs.replace(
            request,
            token_ids=request.token_ids + pack_token_ids(token_ids[request.prior_output_tokens :]),
            prior_output_tokens=len(token_ids),
            stop=msgspec.structs.replace(stop, max_tokens=remaining),
        )


def _merge(into: LLMEngineOutput, later: LLMEngineOutput) -> None:
    into.token_ids += later.token_ids
    if later.logprobs is not None:
        into.logprobs = (into.logprobs or []) + later.logprobs
    if later.prompt_logprobs is not None:
        into.prompt_logprobs = later.prompt_logprobs
    into.finish_reason = later.finish_reason or into.finish_reason
    into.stop_reason = later.stop_reason if later.stop_reason is not None else into.stop_reason
    into.usage = later.usage or into.usage
