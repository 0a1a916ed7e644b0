"""Texts and token ids that clients give outside of prompts: checked, and tokenized beside the event loop when long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dynamo.errors import InvalidRequest
from dynamo.preprocessor.overlong import SUSPICIOUS_CHARACTERS_PER_TOKEN, has_more_tokens
from dynamo.preprocessor.tokenizer import Tokenizer, in_encode_thread

__all__ = ["INLINE_IDS", "check_texts_fit", "checked_id_lists", "checked_ids", "encode_texts", "overlong_text"]

T = TypeVar("T")

#: More ids are looked at beside the event loop.
INLINE_IDS = 8192


async def check_texts_fit(
    tokenizer: Tokenizer, texts: Sequence[str], context_length_tokens: int, what: str, param: str
) -> None:
    """Refuse, before it is encoded, what is far too long for the model; a text that passes may still be too long.

    Raises:
        InvalidRequest: a text has more tokens than the context, or is not valid Unicode; `what` it is, for the message.
    """
    text = await overlong_text(tokenizer, texts, context_length_tokens)
    if text is not None:
        raise InvalidRequest(
            f"this model's context is {context_length_tokens} tokens; {what} has more, in {len(text)} characters",
            param=param,
            reason="context_length_exceeded",
        )


async def overlong_text(tokenizer: Tokenizer, texts: Sequence[str], most_tokens: int) -> str | None:
    """The first of `texts` that has far more than `most_tokens`, found out without encoding it.

    Raises:
        InvalidRequest: a text is not valid Unicode.
    """
    for text in texts:
        if len(text) > SUSPICIOUS_CHARACTERS_PER_TOKEN * most_tokens and await _while_wanted(
            partial(has_more_tokens, tokenizer, text, most_tokens)
        ):
            return text
    return None


async def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool
) -> list[npt.NDArray[np.uint32]]:
    """Token ids of each text, shape ``[n_tokens]``.

    Raises:
        InvalidRequest: a text is not valid Unicode.
    """

    def encoded() -> Iterator[npt.NDArray[np.uint32]]:
        return (tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts)

    # The sum counts: a thousand short texts hold the loop up like one long one.
    if sum(map(len, texts)) <= tokenizer.inline_characters:
        return list(encoded())
    return await _while_wanted(lambda wanted: list(takewhile(lambda _: wanted(), encoded())))


def checked_ids(tokenizer: Tokenizer, ids: Sequence[int], param: str) -> npt.NDArray[np.uint32]:
    """`ids` as an array, shape ``[n_tokens]``.

    Raises:
        InvalidRequest: there are none, or one is outside the vocabulary; `param` names the field.
    """
    try:
        array = np.asarray(ids, dtype=np.int64)
    except OverflowError:
        array = np.empty(0, np.int64)
    if not len(array) or array.min() < 0 or array.max() >= tokenizer.vocab_size:
        raise InvalidRequest(
            f"'{param}' token ids must be between 0 and {tokenizer.vocab_size - 1}, at least one", param=param
        )
    return array.astype(np.uint32)


async def checked_id_lists(
    tokenizer: Tokenizer, lists: Sequence[Sequence[int]], param: str
) -> list[npt.NDArray[np.uint32]]:
    """`checked_ids` of each, beside the event loop when they are many.

    Raises:
        InvalidRequest: as `checked_ids`.
    """

    def check() -> list[npt.NDArray[np.uint32]]:
        return [checked_ids(tokenizer, ids, param) for ids in lists]

    return check() if sum(map(len, lists)) <= INLINE_IDS else await in_encode_thread(check)


async def _while_wanted(work: Callable[[Callable[[], bool]], T]) -> T:
    """``work(wanted)`` beside the event loop. ``wanted()`` is false once nobody waits any more: the client has gone."""
    given_up = threading.Event()
    try:
        return await in_encode_thread(lambda: work(lambda: not given_up.is_set()))
    finally:
        given_up.set()
