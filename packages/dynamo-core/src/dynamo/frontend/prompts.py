"""Token ids of a request's prompts: rendered, tokenized, inline when short and beside the event loop when long."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.errors import InvalidRequest
from dynamo.frontend.models import ServedModel
from dynamo.frontend.requests import ChatRequest, CompletionRequest

__all__ = ["INLINE_TEXT_CHARACTERS", "Prompt", "Prompts", "chat_prompts", "completion_prompts", "prompt_count"]

#: Longer texts are tokenized in a thread: 0.3 MB of text would hold up every stream for tens of milliseconds.
INLINE_TEXT_CHARACTERS = 8192


class Prompt(msgspec.Struct):
    """One prompt: its ids, shape ``[n_tokens]``, and its text where the client may want it back."""

    token_ids: npt.NDArray[np.uint32]
    text: str = ""


#: At once, or later.
Prompts: TypeAlias = "list[Prompt] | Coroutine[Any, Any, list[Prompt]]"


def chat_prompts(request: ChatRequest, model: ServedModel) -> Prompts:
    """The one prompt of a chat request.

    Raises:
        InvalidRequest: the template refuses the messages, or the model has none.
    """
    text = model.text.template.render(
        request.messages,
        tools=None if request.tool_choice == "none" else request.tools,
        add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
        continue_final_message=request.continue_final_message,
        variables=request.chat_template_kwargs,
    )
    return _tokenize(model, [text], add_special_tokens=False)


def prompt_count(request: CompletionRequest) -> int:
    """How many prompts a completion request has: a text is one, and so is a list of token ids."""
    prompt = request.prompt
    return 1 if isinstance(prompt, str) or isinstance(prompt[0], int) else len(prompt)


def completion_prompts(request: CompletionRequest, model: ServedModel) -> Prompts:
    """The prompts of a completion request, given as text or as token ids.

    Raises:
        InvalidRequest: a prompt is empty, or a token id is out of range.
    """
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
    if sum(map(len, texts)) <= INLINE_TEXT_CHARACTERS:
        return [Prompt(tokenizer.encode(text, add_special_tokens=add_special_tokens), text) for text in texts]

    async def later() -> list[Prompt]:
        return [
            Prompt(await tokenizer.encode_async(text, add_special_tokens=add_special_tokens), text) for text in texts
        ]

    return later()


def _from_ids(model: ServedModel, ids: list[int]) -> Prompt:
    size = model.text.tokenizer.vocab_size
    if not ids or not all(0 <= token < size for token in ids):
        raise InvalidRequest(f"'prompt' token ids must be between 0 and {size - 1}, at least one", param="prompt")
    return Prompt(np.asarray(ids, dtype=np.uint32), model.text.tokenizer.decode(ids))
