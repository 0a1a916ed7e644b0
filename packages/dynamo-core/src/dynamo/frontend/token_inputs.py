"""Texts and token ids that clients give outside of prompts: checked, and tokenized beside the event loop when long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dynamo.errors import InvalidRequest
from dynamo.preprocessor.tokenizer import Tokenizer, in_encode_thread

__all__ = ["checked_ids", "encode_texts"]


async def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool
) -> list[npt.NDArray[np.uint32]]:
    """Token ids of each text, shape ``[n_tokens]``.

    Raises:
        InvalidRequest: a text is not valid Unicode.
    """

    def encode() -> list[npt.NDArray[np.uint32]]:
        return [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    # The sum counts: a thousand short texts hold the loop up like one long one.
    return encode() if sum(map(len, texts)) <= tokenizer.inline_characters else await in_encode_thread(encode)


def checked_ids(tokenizer: Tokenizer, ids: Sequence[int], param: str) -> npt.NDArray[np.uint32]:
    """`ids` as an array, shape ``[n_tokens]``.

    Raises:
        InvalidRequest: there are none, or one is outside the vocabulary; `param` names the field.
    """
    if not ids or min(ids) < 0 or max(ids) >= tokenizer.vocab_size:
        raise InvalidRequest(
            f"'{param}' token ids must be between 0 and {tokenizer.vocab_size - 1}, at least one", param=param
        )
    return np.asarray(ids, dtype=np.uint32)
