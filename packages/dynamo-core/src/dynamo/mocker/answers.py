"""What a simulated engine answers: a known number of ids that depend on the request alone, decided at once.

Called by `engine` before a request is queued, so that the core only counts.
"""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo.protocols.llm import FinishReason, PreprocessedRequest

__all__ = ["Answer", "Vocabulary", "plan_answer"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Vocabulary(NamedTuple):
    """Ids that answers are made of: those from `lowest` up to, without, `end`."""

    lowest: int
    end: int

    @classmethod
    def of_size(cls, size: int) -> Vocabulary:
        """The middle of a vocabulary: bytes and special tokens lie at its ends, as a rule."""
        return cls(min(256, size // 4), max(size * 3 // 4, 1))


class Answer(NamedTuple):
    """The whole answer."""

    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: int | None = None
    """The id behind the last of `token_ids` that ends the answer. It is drawn and not streamed."""

    @property
    def drawn_tokens(self) -> int:
        """Tokens that the engine has to generate."""
        return len(self.token_ids) + (self.stop_reason is not None)


def plan_answer(
    request: PreprocessedRequest,
    *,
    source: Literal["random", "echo"],
    vocabulary: Vocabulary,
    context_length: int,
    default_tokens: int,
    seed: int,
) -> Answer:
    """The answer to a request that leaves room for at least one token.

    Args:
        request: prompt, prior output, seed and stop conditions decide.
        source: pseudo-random ids, or the prompt's own, over and over.
        vocabulary: where random ids come from.
        context_length: most tokens of prompt and answer.
        default_tokens: length of an answer that the request does not bound.
        seed: of the engine; another one gives other ids.
    """
    prompt = request.prompt()
    stop, prior = request.stop, request.prior_output_tokens
    room = context_length - len(prompt)
    limit = min(room if stop.max_tokens is None else stop.max_tokens, room)
    reason: FinishReason = "length"
    ends = stop.max_tokens is None and not stop.ignore_eos
    natural = max(default_tokens, stop.min_tokens) - prior
    if ends and natural < limit:
        limit, reason = max(natural, 1), "stop"
    positions = np.arange(prior, prior + limit, dtype=np.uint64)
    own = prompt[: len(prompt) - prior]
    if source == "echo":
        ids = own[positions % np.uint64(len(own))].astype(np.int64)
    else:
        ids = _random_ids(_digest(own, request, seed), positions, vocabulary)
    token_ids: list[int] = ids.tolist()
    first = max(stop.min_tokens - prior, 0)
    stop_ids = frozenset(stop.stop_token_ids)
    for index in range(first, len(token_ids)) if stop_ids else ():
        if token_ids[index] in stop_ids:
            return Answer(token_ids[:index], "stop", token_ids[index])
    return Answer(token_ids, reason)


def _digest(prompt: npt.NDArray[np.uint32], request: PreprocessedRequest, seed: int) -> int:
    sampled_with = request.sampling.seed if request.sampling.temperature > 0 else None
    data = prompt.tobytes() + msgspec.msgpack.encode((seed, sampled_with))
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _random_ids(key: int, positions: npt.NDArray[np.uint64], vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """A counter-based generator (the finalizer of splitmix64), so that position n needs no n - 1 steps before it."""
    mixed = np.uint64(key) + positions * _GOLDEN  # arrays wrap around without a warning
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    span = np.uint64(vocabulary.end - vocabulary.lowest)
    return (mixed % span).astype(np.int64) + vocabulary.lowest
