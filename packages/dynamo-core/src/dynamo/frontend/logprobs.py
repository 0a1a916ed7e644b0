"""Logprobs in the two shapes that OpenAI's endpoints use."""

from __future__ import annotations

from typing import Any

from dynamo.preprocessor.tokenizer import Tokenizer
from dynamo.protocols.llm import TokenLogprob

__all__ = ["chat_logprobs", "completion_logprobs"]


def chat_logprobs(tokenizer: Tokenizer, logprobs: list[TokenLogprob]) -> list[dict[str, Any]]:
    """``choices[].logprobs.content``: one entry per token with its bytes and alternatives."""
    return [
        {
            **_entry(tokenizer, item.token_id, item.logprob),
            "top_logprobs": [_entry(tokenizer, token_id, logprob) for token_id, logprob in item.top],
        }
        for item in logprobs
    ]


def completion_logprobs(tokenizer: Tokenizer, logprobs: list[TokenLogprob | None], offset: int) -> dict[str, Any]:
    """``choices[].logprobs`` of completions; `offset` is the character at which the first token starts."""
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for item in logprobs:
        if item is None:
            # The first prompt token has no probability: nothing comes before it.
            tokens.append("")
            values.append(None)
            tops.append(None)
            offsets.append(offset)
            continue
        text = tokenizer.token_text(item.token_id)
        tokens.append(text)
        values.append(item.logprob)
        tops.append({tokenizer.token_text(token_id): logprob for token_id, logprob in item.top})
        offsets.append(offset)
        offset += len(text)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
