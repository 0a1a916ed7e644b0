"""Route handlers of ``/v1/responses``, and the responses that are kept for clients that go on from them.

A response is kept with its whole conversation, so that one read is enough to go on, and an older response may be
deleted or fall out of the store without breaking those that came after it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from urllib.parse import parse_qs

import msgspec

from dynamo.errors import DynamoError, InvalidRequest
from dynamo.frontend.answers import Answer
from dynamo.frontend.calls import Calls
from dynamo.frontend.listing import Page
from dynamo.frontend.metrics import FrontendMetrics, RequestMetrics
from dynamo.frontend.models import ServedModel
from dynamo.frontend.parts import Outcome, PartAnswer
from dynamo.frontend.pipeline import ChatCall, Pipeline
from dynamo.frontend.prompts import Prompt
from dynamo.frontend.refusals import Refusals, check_room, request_id
from dynamo.frontend.requests import decode_body
from dynamo.frontend.responses.format import ResponseFormat
from dynamo.frontend.responses.items import Item, conversation, messages_of, read_items
from dynamo.frontend.responses.request import ResponseRequest, chat_request, check_response_request
from dynamo.frontend.security import current_identity
from dynamo.frontend.settings import FrontendSettings
from dynamo.frontend.store import FrontendStore
from dynamo.runtime.http import Exchange

__all__ = ["Responses"]

logger = logging.getLogger(__name__)

_ENDPOINT = "responses"


class _ResponseNotFound(InvalidRequest):
    """There is no such response, or it belongs to another API key."""

    code = "not_found"
    http_status = 404


class _Kept(msgspec.Struct):
    """What the store holds of a response."""

    response: msgspec.Raw
    """Its body."""
    input: list[Item]
    """The conversation before it."""
    output: list[Item]
    """What it added to that."""


_decode_kept = msgspec.json.Decoder(_Kept).decode
_encode = msgspec.json.Encoder().encode


class Responses:
    """The route handlers."""

    def __init__(
        self, pipeline: Pipeline, metrics: FrontendMetrics, store: FrontendStore, settings: FrontendSettings
    ) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._store = store
        self._settings = settings
        self._calls = Calls(metrics, _ENDPOINT)

    def create(self, exchange: Exchange) -> None:
        """Answer; at once, or after what it goes on from was read."""
        with Refusals(self._metrics, exchange, _ENDPOINT):
            check_room(self._metrics, self._settings.max_inflight_requests)
            request = decode_body(exchange.body, ResponseRequest, strict=self._settings.strict)
            check_response_request(request)
            items = read_items(request.input)
            if request.previous_response_id is None:
                self._begin(exchange, request, items)
            else:
                self._calls.serve(exchange, self._go_on(exchange, request, request.previous_response_id, items))

    def fetch(self, exchange: Exchange) -> None:
        """A response that was kept."""

        async def work() -> None:
            if parse_qs(exchange.query).get("stream", ["false"])[-1] == "true":
                raise InvalidRequest("a kept response cannot be streamed", param="stream")
            kept = await self._kept(exchange.params)
            exchange.respond(200, bytes(kept.response))

        self._calls.serve(exchange, work())

    def delete(self, exchange: Exchange) -> None:
        """Forget a response."""

        async def work() -> None:
            response_id = exchange.params
            if not await self._store.delete_response(response_id, current_identity().name):
                raise _ResponseNotFound(f"there is no response {response_id!r}", param="response_id")
            exchange.respond_json(200, {"id": response_id, "object": "response", "deleted": True})

        self._calls.serve(exchange, work())

    def input_items(self, exchange: Exchange) -> None:
        """The conversation that a response was the answer to, earlier turns included."""

        async def work() -> None:
            page = Page.from_query(exchange.query)
            kept = await self._kept(exchange.params)
            exchange.respond_json(200, page.of(kept.input))

        self._calls.serve(exchange, work())

    async def close(self) -> None:
        """Let what is being kept be kept."""
        await self._calls.close()
        await self._store.close()

    async def _go_on(self, exchange: Exchange, request: ResponseRequest, previous_id: str, items: list[Item]) -> None:
        try:
            kept = await self._kept(previous_id)
        except _ResponseNotFound as error:
            raise InvalidRequest(
                error.message, param="previous_response_id", reason="previous_response_not_found"
            ) from error
        if not exchange.disconnected:
            self._begin(exchange, request, [*kept.input, *kept.output, *items])

    def _begin(self, exchange: Exchange, request: ResponseRequest, items: list[Item]) -> None:
        # The client's own id is no secret, and a response's id must not be guessed.
        response_id = f"resp_{request_id(exchange)}{secrets.token_hex(12)}"
        stored = request.store is not False and self._settings.response_store_entries > 0
        owner = current_identity().name

        def make_answer(model: ServedModel, prompts: list[Prompt], metrics: RequestMetrics) -> Answer:  # noqa: ARG001
            response_format = ResponseFormat(response_id, request, model.text.tokenizer, stored=stored)

            def keep_first(outcome: Outcome, send: Callable[[], None]) -> None:
                body = response_format.whole(outcome)
                kept = _Kept(msgspec.Raw(_encode(body)), items, conversation(body["output"]))
                self._calls.spawn(self._keep(response_id, owner, kept, send))

            return PartAnswer(
                exchange,
                response_format,
                metrics,
                stream=bool(request.stream),
                before_end=keep_first if stored else None,
                token_text=model.text.tokenizer.token_text,
            )

        chat = chat_request(request, messages_of(items))
        self._pipeline.begin_chat(ChatCall(exchange, _ENDPOINT, response_id, chat, make_answer))

    async def _keep(self, response_id: str, owner: str, kept: _Kept, send: Callable[[], None]) -> None:
        """Keep a response before its end is sent: a client may go on at once, at another process."""
        try:
            await self._store.put_response(response_id, owner, _encode(kept))
        except DynamoError as error:
            logger.warning("response %s is not kept: %s", response_id, error)
        finally:
            send()

    async def _kept(self, response_id: str) -> _Kept:
        body = await self._store.get_response(response_id, current_identity().name)
        if body is None:
            raise _ResponseNotFound(f"there is no response {response_id!r} (any more)", param="response_id")
        return _decode_kept(body)
