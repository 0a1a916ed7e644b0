"""Route handlers of ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from functools import partial

from dynamo.frontend.answers import Answer
from dynamo.frontend.messages.format import MessageFormat
from dynamo.frontend.messages.request import (
    MessageRequest,
    TokenCountRequest,
    chat_request,
    check_message_request,
)
from dynamo.frontend.metrics import FrontendMetrics, RequestMetrics
from dynamo.frontend.models import ServedModel, ServedModels
from dynamo.frontend.parts import PartAnswer
from dynamo.frontend.pipeline import ChatCall, Pipeline
from dynamo.frontend.preparation import Preparations
from dynamo.frontend.prompts import Prompt, chat_prompts
from dynamo.frontend.refusals import Refusals, check_room, request_id
from dynamo.frontend.requests import check_chat, decode_body
from dynamo.frontend.settings import FrontendSettings
from dynamo.frontend.tools import check_tools
from dynamo.runtime.http import Exchange

__all__ = ["Messages"]


class Messages:
    """The route handlers."""

    def __init__(
        self, pipeline: Pipeline, models: ServedModels, metrics: FrontendMetrics, settings: FrontendSettings
    ) -> None:
        self._pipeline = pipeline
        self._models = models
        self._metrics = metrics
        self._settings = settings
        self._preparations = Preparations(metrics)

    def create(self, exchange: Exchange) -> None:
        """Answer."""
        with Refusals(self._metrics, exchange, "messages"):
            check_room(self._metrics, self._settings.max_inflight_requests)
            request = decode_body(exchange.body, MessageRequest, strict=self._settings.strict)
            check_message_request(request, self._settings.max_stop_strings)
            message_id = f"msg_{request_id(exchange)}"

            def make_answer(model: ServedModel, prompts: list[Prompt], metrics: RequestMetrics) -> Answer:  # noqa: ARG001
                message_format = MessageFormat(message_id, request.model, len(prompts[0].token_ids))
                return PartAnswer(exchange, message_format, metrics, stream=bool(request.stream))

            self._pipeline.begin_chat(ChatCall(exchange, "messages", message_id, chat_request(request), make_answer))

    def count_tokens(self, exchange: Exchange) -> None:
        """How many tokens the prompt of a request has."""
        with Refusals(self._metrics, exchange, "count_tokens"):
            check_room(self._metrics, self._settings.max_inflight_requests)
            chat = chat_request(decode_body(exchange.body, TokenCountRequest, strict=self._settings.strict))
            check_chat(chat)
            check_tools(chat)
            prompts = chat_prompts(chat, self._models.get(chat.model), len(exchange.body))
            if isinstance(prompts, list):
                _respond_count(exchange, prompts)
            else:
                self._preparations.begin(exchange, "count_tokens", prompts, partial(_respond_count, exchange))

    async def close(self) -> None:
        """Stop what is being counted."""
        await self._preparations.close()


def _respond_count(exchange: Exchange, prompts: list[Prompt]) -> None:
    exchange.respond_json(200, {"input_tokens": sum(len(prompt.token_ids) for prompt in prompts)})
