"""``POST /tokenize`` and ``/detokenize``, in the shapes that vLLM and SGLang share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.errors import InvalidRequest
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.models import ServedModel, ServedModels
from dynamo.frontend.preparation import Preparations
from dynamo.frontend.prompts import chat_prompts
from dynamo.frontend.refusals import Refusals
from dynamo.frontend.requests import ChatRequest, check_chat, decode_body
from dynamo.frontend.token_inputs import INLINE_IDS, checked_id_lists, encode_texts, overlong_text
from dynamo.runtime.http import Exchange

__all__ = ["DetokenizeRequest", "Tokenization", "TokenizeRequest"]

T = TypeVar("T")

#: Tokens that are taken and given even where the context is shorter. To read and check so many ids holds up every
#: thread for a tenth of a second.
_LEAST_TOKENS_LIMIT = 500_000


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """``POST /tokenize``: a text as it is, or the prompt that chat messages become."""

    model: str | None = None
    """None: the only model that is served."""
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    """Of a text; None is true. A template writes its own."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """``POST /detokenize``."""

    tokens: list[int]
    model: str | None = None
    """None: the only model that is served."""
    skip_special_tokens: bool = False


class Tokenization:
    """The two route handlers."""

    def __init__(self, models: ServedModels, metrics: FrontendMetrics, *, strict: bool) -> None:
        self._models = models
        self._metrics = metrics
        self._strict = strict
        self._preparations = Preparations(metrics)

    def tokenize(self, exchange: Exchange) -> None:
        """Route handler."""
        with Refusals(self._metrics, exchange, "tokenize"):
            request = decode_body(exchange.body, TokenizeRequest, strict=self._strict)
            _check(request)
            self._start("tokenize", exchange, _tokenize(request, self._model(request.model), len(exchange.body)))

    def detokenize(self, exchange: Exchange) -> None:
        """Route handler."""
        with Refusals(self._metrics, exchange, "detokenize"):
            request = decode_body(exchange.body, DetokenizeRequest, strict=self._strict)
            model = self._model(request.model)
            self._start("detokenize", exchange, _detokenize(request, model))

    async def close(self) -> None:
        """Stop what is running."""
        await self._preparations.close()

    def _model(self, name: str | None) -> ServedModel:
        if name is not None:
            return self._models.get(name)
        served = {model.name: model for model in self._models.names().values() if model.lora is None}
        if len(served) != 1:
            raise InvalidRequest(f"'model' is missing, and {len(served)} models are served", param="model")
        return next(iter(served.values()))

    def _start(self, endpoint: str, exchange: Exchange, body: Coroutine[Any, Any, dict[str, Any]]) -> None:
        self._preparations.begin(exchange, endpoint, body, partial(exchange.respond_json, 200))


async def _tokenize(request: TokenizeRequest, model: ServedModel, body_bytes: int) -> dict[str, Any]:
    ids = await _ids(request, model, body_bytes)

    def body() -> dict[str, Any]:
        tokens = ids.tolist()
        text = model.text.tokenizer.token_text
        return {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": model.context_length_tokens,
            "token_strs": [text(token) for token in tokens] if request.return_token_strs else None,
        }

    return await _beside_when_long(ids, body)


async def _ids(request: TokenizeRequest, model: ServedModel, body_bytes: int) -> npt.NDArray[np.uint32]:
    if request.messages is None:
        tokenizer, texts = model.text.tokenizer, [request.prompt or ""]
        most = _most_tokens(model)
        if await overlong_text(tokenizer, texts, most) is None:
            [ids] = await encode_texts(tokenizer, texts, add_special_tokens=request.add_special_tokens is not False)
            if len(ids) <= most:
                return ids
        raise InvalidRequest(f"'prompt' has more than {most} tokens; no more are given", param="prompt")
    chat = ChatRequest(
        model=model.name,
        messages=request.messages,
        tools=request.tools,
        chat_template_kwargs=request.chat_template_kwargs,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
    )
    check_chat(chat)
    prompts = chat_prompts(chat, model, body_bytes)
    return (prompts if isinstance(prompts, list) else await prompts)[0].token_ids


async def _detokenize(request: DetokenizeRequest, model: ServedModel) -> dict[str, Any]:
    most = _most_tokens(model)
    if len(request.tokens) > most:
        raise InvalidRequest(f"'tokens' has {len(request.tokens)} ids; at most {most} are taken", param="tokens")
    ids: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
    if request.tokens:
        [ids] = await checked_id_lists(model.text.tokenizer, [request.tokens], "tokens")

    def decode() -> str:
        return model.text.tokenizer.decode(ids.tolist(), skip_special_tokens=request.skip_special_tokens)

    text = await _beside_when_long(ids, decode)
    # `prompt` is vLLM's name for it, `text` SGLang's.
    return {"prompt": text, "text": text}


def _most_tokens(model: ServedModel) -> int:
    return max(model.context_length_tokens, _LEAST_TOKENS_LIMIT)


async def _beside_when_long(ids: npt.NDArray[np.uint32], work: Callable[[], T]) -> T:
    """``work()``, off the event loop when there are many ids to look at."""
    return work() if len(ids) <= INLINE_IDS else await asyncio.to_thread(work)


def _check(request: TokenizeRequest) -> None:
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("give either 'prompt' or 'messages'", param="prompt")
    if request.messages is not None and request.add_special_tokens:
        raise InvalidRequest(
            "'add_special_tokens' is for 'prompt'; a chat template writes its own", param="add_special_tokens"
        )
