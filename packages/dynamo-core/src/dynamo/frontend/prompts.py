"""Token ids of a request's prompts: rendered, tokenized, inline when short and beside the event loop when long.

The prompt of a chat goes through the model's cache of tokenized prefixes, so that the next turn costs its tail.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.errors import InvalidRequest
from dynamo.frontend.models import ServedModel
from dynamo.frontend.requests import ChatRequest, CommonParameters, CompletionRequest
from dynamo.frontend.token_inputs import checked_ids
from dynamo.preprocessor.prefix_cache import PrefixCache, Tokenizing
from dynamo.preprocessor.tokenizer import in_encode_thread
from dynamo.protocols.routing import PrefixHashes

__all__ = ["Prompt", "Prompts", "chat_prompts", "completion_prompts", "prompt_count"]


class Prompt(msgspec.Struct):
    """One prompt: its ids, shape ``[n_tokens]``, and its text where the client may want it back."""

    token_ids: npt.NDArray[np.uint32]
    text: str = ""
    prefix: Sequence[PrefixHashes] = ()
    """What is known of the blocks that it begins with."""


#: At once, or later.
Prompts: TypeAlias = "list[Prompt] | Coroutine[Any, Any, list[Prompt]]"


def chat_prompts(request: ChatRequest, model: ServedModel) -> Prompts:
    """The one prompt of a chat request.

    Raises:
        InvalidRequest: the template refuses the messages, or the model has none.
    """
    given = _given_ids(request)
    if given is not None:
        return [_from_ids(model, given, "nvext.token_data")]
    text = model.text.template.render(
        request.messages,
        tools=None if request.tool_choice == "none" else request.tools,
        add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
        continue_final_message=request.continue_final_message,
        variables=request.chat_template_kwargs,
    )
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
        return [_from_ids(model, given, "nvext.token_data")]
    if isinstance(request.prompt, str):
        return _tokenize(model, [request.prompt], add_special_tokens=True)
    texts = [part for part in request.prompt if isinstance(part, str)]
    if texts:
        return _tokenize(model, texts, add_special_tokens=True)
    single = [part for part in request.prompt if isinstance(part, int)]
    lists = [single] if single else [part for part in request.prompt if isinstance(part, list)]
    return [_from_ids(model, ids) for ids in lists]


def _tokenize(model: ServedModel, texts: list[str], *, add_special_tokens: bool) -> Prompts:
    tokenizer = model.text.tokenizer
    if sum(map(len, texts)) <= tokenizer.inline_characters:
        return [Prompt(tokenizer.encode(text, add_special_tokens=add_special_tokens), text) for text in texts]

    async def later() -> list[Prompt]:
        return [
            Prompt(await tokenizer.encode_async(text, add_special_tokens=add_special_tokens), text) for text in texts
        ]

    return later()


def _given_ids(request: CommonParameters) -> list[int] | None:
    """The prompt that the client has tokenized itself, beside the text."""
    return request.nvext.token_data if request.nvext is not None else None


def _from_ids(model: ServedModel, ids: list[int], param: str = "prompt") -> Prompt:
    if len(ids) > model.context_length_tokens:
        # A body holds millions of ids, and their text is made on the event loop.
        raise InvalidRequest(
            f"this model's context is {model.context_length_tokens} tokens; the prompt has {len(ids)}",
            param=param,
            reason="context_length_exceeded",
        )
    tokenizer = model.text.tokenizer
    return Prompt(checked_ids(tokenizer, ids, param), tokenizer.decode(ids))
