"""Token ids of a request's prompts: rendered, tokenized, inline when short and beside the event loop when long.

The prompt of a chat goes through the model's cache of tokenized prefixes, so that the next turn costs its tail.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.frontend.body_bounds import check_ids_length, message_pieces
from dynamo.frontend.models import ServedModel
from dynamo.frontend.render_time import only_texts
from dynamo.frontend.requests import ChatRequest, CommonParameters, CompletionRequest
from dynamo.frontend.token_inputs import INLINE_IDS, check_texts_fit, checked_ids
from dynamo.preprocessor.overlong import SUSPICIOUS_CHARACTERS_PER_TOKEN
from dynamo.preprocessor.prefix_cache import PrefixCache, Tokenizing
from dynamo.preprocessor.tokenizer import in_encode_thread
from dynamo.protocols.routing import PrefixHashes

__all__ = ["Prompt", "Prompts", "chat_prompts", "completion_prompts", "prompt_count"]

#: A template takes about 50 us for each message; other threads get their turn every 5 ms.
_INLINE_MESSAGES = 64
#: What a larger body is made of (schemas of tools, arguments of calls) may take a template much longer; where it is
#: nothing but texts, the template's own speed decides.
_INLINE_BODY_BYTES = 64 << 10
_INLINE_SECONDS = 0.001


class Prompt(msgspec.Struct):
    """One prompt: its ids, shape ``[n_tokens]``, and its text where the client may want it back."""

    token_ids: npt.NDArray[np.uint32]
    text: str = ""
    prefix: Sequence[PrefixHashes] = ()
    """What is known of the blocks that it begins with."""


#: At once, or later.
Prompts: TypeAlias = "list[Prompt] | Coroutine[Any, Any, list[Prompt]]"


def chat_prompts(request: ChatRequest, model: ServedModel, body_bytes: int) -> Prompts:
    """The one prompt of a chat request, which came in a body of `body_bytes`.

    Raises:
        InvalidRequest: the template refuses the messages, or the model has none.
    """
    given = _given_ids(request)
    if given is not None:
        return _from_ids(model, [given], "nvext.token_data")
    pieces = message_pieces(request.messages) + len(request.tools or ())
    if pieces <= _INLINE_MESSAGES and body_bytes <= _INLINE_BODY_BYTES:
        return _encoded(request, model, _rendered(request, model))
    if pieces > _INLINE_MESSAGES or request.tools or not only_texts(request.messages):
        return _rendered_later(request, model, lambda: _rendered(request, model))

    def measured() -> str:
        return model.render_time.measured(lambda: _rendered(request, model), body_bytes)

    if model.render_time.expected_seconds(body_bytes) > _INLINE_SECONDS:
        return _rendered_later(request, model, measured)
    return _encoded(request, model, measured())


def _rendered(request: ChatRequest, model: ServedModel) -> str:
    return model.text.template.render(
        request.messages,
        tools=None if request.tool_choice == "none" else request.tools,
        add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
        continue_final_message=request.continue_final_message,
        variables=request.chat_template_kwargs,
    )


async def _rendered_later(request: ChatRequest, model: ServedModel, render: Callable[[], str]) -> list[Prompt]:
    prompts = _encoded(request, model, await in_encode_thread(render))
    return prompts if isinstance(prompts, list) else await prompts


def _encoded(request: ChatRequest, model: ServedModel, text: str) -> Prompts:
    inline = model.text.tokenizer.inline_characters
    if len(text) > max(inline, SUSPICIOUS_CHARACTERS_PER_TOKEN * model.context_length_tokens):
        return _encoded_if_it_fits(request, model, text)
    return _encoded_by_pieces(request, model, text)


async def _encoded_if_it_fits(request: ChatRequest, model: ServedModel, text: str) -> list[Prompt]:
    await check_texts_fit(model.text.tokenizer, [text], model.context_length_tokens, "the prompt", "messages")
    prompts = _encoded_by_pieces(request, model, text)
    return prompts if isinstance(prompts, list) else await prompts


def _encoded_by_pieces(request: ChatRequest, model: ServedModel, text: str) -> Prompts:
    cache = model.prefixes
    tokenizing = cache.begin(text, request.cache_salt)
    if tokenizing.missing_characters <= model.text.tokenizer.inline_characters:
        tokenizing.encode()
        return [_tokenized(cache, tokenizing, text)]
    return _tokenized_later(cache, tokenizing, text)


def _tokenized(cache: PrefixCache, tokenizing: Tokenizing, text: str) -> Prompt:
    token_ids, prefix = cache.end(tokenizing)
    return Prompt(token_ids, text, prefix)


async def _tokenized_later(cache: PrefixCache, tokenizing: Tokenizing, text: str) -> list[Prompt]:
    # A long text would hold up every stream for as long as it takes.
    await in_encode_thread(tokenizing.encode)
    return [_tokenized(cache, tokenizing, text)]


def prompt_count(request: CompletionRequest) -> int:
    """How many prompts a completion request has: a text is one, and so is a list of token ids."""
    prompt = request.prompt
    if _given_ids(request) is not None:
        return 1
    return 1 if isinstance(prompt, str) or isinstance(prompt[0], int) else len(prompt)


def completion_prompts(request: CompletionRequest, model: ServedModel) -> Prompts:
    """The prompts of a completion request, given as text or as token ids.

    Raises:
        InvalidRequest: a prompt is empty, or a token id is out of range.
    """
    given = _given_ids(request)
    if given is not None:
        return _from_ids(model, [given], "nvext.token_data")
    prompt: Any = request.prompt
    if isinstance(prompt, str):
        return _tokenize(model, [prompt], add_special_tokens=True)
    # All parts are of one type: `check_completion` refuses others, and millions of them are not looked at again.
    if isinstance(prompt[0], str):
        return _tokenize(model, prompt, add_special_tokens=True)
    return _from_ids(model, [prompt] if isinstance(prompt[0], int) else prompt, "prompt")


def _tokenize(model: ServedModel, texts: list[str], *, add_special_tokens: bool) -> Prompts:
    tokenizer = model.text.tokenizer
    if sum(map(len, texts)) <= tokenizer.inline_characters:
        return [Prompt(tokenizer.encode(text, add_special_tokens=add_special_tokens), text) for text in texts]

    async def later() -> list[Prompt]:
        await check_texts_fit(tokenizer, texts, model.context_length_tokens, "the prompt", "prompt")
        return [
            Prompt(await tokenizer.encode_async(text, add_special_tokens=add_special_tokens), text) for text in texts
        ]

    return later()


def _given_ids(request: CommonParameters) -> list[int] | None:
    """The prompt that the client has tokenized itself, beside the text."""
    return request.nvext.token_data if request.nvext is not None else None


def _from_ids(model: ServedModel, prompts: Sequence[list[int]], param: str) -> Prompts:
    for ids in prompts:
        check_ids_length(ids, model.context_length_tokens, "the prompt", param)
    tokenizer = model.text.tokenizer

    def read() -> list[Prompt]:
        return [Prompt(checked_ids(tokenizer, ids, param), tokenizer.decode(ids)) for ids in prompts]

    return read() if sum(map(len, prompts)) <= INLINE_IDS else in_encode_thread(read)
