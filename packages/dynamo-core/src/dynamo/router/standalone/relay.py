"""One request of the standalone router: a worker is chosen, and its stream passed through untouched.

Everything runs in plane callbacks, as in the frontend: no task and no queue per item.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from dynamo.errors import DynamoError, EngineError, Retry
from dynamo.protocols.context import RequestContext
from dynamo.protocols.llm import PreprocessedRequest
from dynamo.protocols.planes import PlaneStream, RequestPlane, StreamWriter
from dynamo.protocols.routing import PromptHashes, RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.route import Route

__all__ = ["Relay", "route_request"]

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
#: Workers that one request may be tried at, before its first item came.
_ATTEMPTS = 4


def route_request(request: PreprocessedRequest, excluded: frozenset[int] = frozenset()) -> RouteRequest:
    """The facts of `request` that a decision uses; the instances `excluded` have failed it already."""
    return RouteRequest(
        request_id=request.request_id,
        model=request.model,
        prompt_tokens=len(request.token_ids) // 4,
        lora=request.lora,
        priority=request.priority,
        excluded=excluded,
        prompt=PromptHashes(request.token_ids, request.lora, request.cache_salt),
    )


class Relay:
    """Implements `ResponseSink` towards the worker and `QueueUser` towards the router's queue.

    A stream that has begun is not moved: who asked has its tokens, and goes on from them elsewhere.
    """

    def __init__(
        self,
        request: PreprocessedRequest,
        table: CandidateTable,
        plane: RequestPlane,
        context: RequestContext,
        writer: StreamWriter,
    ) -> None:
        self._request = request
        self._table = table
        self._plane = plane
        self._context = context
        self._writer = writer
        self._excluded: frozenset[int] = frozenset()
        self._attempts = _ATTEMPTS
        self._begun = False
        self._route: Route | None = None
        self._stream: PlaneStream | None = None

    def start(self) -> None:
        """Choose a worker and send; where the router has a queue, when it is this request's turn.

        Raises:
            NoInstances: nobody can take the request.
            Overloaded: all who could are busy, or the queue is full.
        """
        queue = self._table.queue
        entry = queue.enter(route_request(self._request, self._excluded), self) if queue is not None else None
        if queue is None or entry is None:
            self._ask()
        else:
            self._context.on_cancel(self._leaving(lambda: queue.leave(entry)))

    def admitted(self) -> None:
        """See `dynamo.router.queue.QueueUser`."""
        self._try(self._ask)

    def refused(self, error: DynamoError) -> None:
        """See `dynamo.router.queue.QueueUser`."""
        self._writer.fail(error)

    def on_items(self, items: list[bytes]) -> None:
        """Outputs of the worker, as they are."""
        self._begun = True
        if self._route is not None:
            self._route.answered(time.monotonic())
        writer, stream = self._writer, self._stream
        for item in items:
            writer.send(item)
        if stream is not None and not writer.writable:
            stream.pause()
            writer.on_writable(stream.resume)

    def on_end(self) -> None:
        """The worker ended the stream."""
        self._release()
        self._writer.end()

    def on_error(self, error: DynamoError) -> None:
        """The worker failed: try another one, if nothing has been passed on yet."""
        route = self._route
        if route is not None:
            route.failed(error, time.monotonic())
            self._excluded |= {route.worker.instance_id}
        self._release()
        self._attempts -= 1
        again = error.retry is Retry.OTHER_WORKER and not self._begun and self._attempts > 0
        if not again or self._context.cancelled:
            self._writer.fail(error)
            return
        try:
            self.start()
        except DynamoError as refusal:
            refusal.__cause__ = error
            self._writer.fail(refusal)
        except Exception:
            # The plane that tells of the lost worker serves other streams too.
            logger.exception("request %s could not be routed again", self._request.request_id)
            self._writer.fail(_internal_error())

    def _ask(self) -> None:
        """Choose a worker; before that, let one come forward, where the router takes who does."""
        request = route_request(self._request, self._excluded)
        claim = self._table.claim(request, time.monotonic())
        if claim is None:
            self._send(request)
        else:
            claim.add_done_callback(
                lambda answer: self._try(lambda: self._send(msgspec.structs.replace(request, claim=answer.result())))
            )

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except DynamoError as error:
            self._writer.fail(error)
        except Exception:
            # Others are waiting for the caller to go on, and a router plugin may raise anything.
            logger.exception("request %s could not be routed", self._request.request_id)
            self._writer.fail(_internal_error())

    def _send(self, request: RouteRequest) -> None:
        if self._context.cancelled:
            self._writer.end()
            return
        route = self._route = self._table.route(request, time.monotonic())
        self._request.dp_rank = route.worker.dp_rank
        try:
            self._stream = self._plane.send(route.record, _encode(self._request), self, self._context)
        except Exception:
            self._release()
            raise

    def _leaving(self, leave: Callable[[], None]) -> Callable[[], None]:
        def cancelled() -> None:
            leave()
            if self._route is None:
                self._writer.end()

        return cancelled

    def _release(self) -> None:
        route, self._route = self._route, None
        if route is not None:
            route.end()


def _internal_error() -> EngineError:
    return EngineError("internal error; the router's log has the details")
