"""Turns logits into tokens.

Per sequence, in this order: penalties, logit bias, minimum length, grammar, then temperature, top-k, top-p, min-p and
the draw. Logprobs are of the model's own distribution, before all of that.

Draws use a counter-based generator keyed by the request's seed and counted by the position in its output, so a stream
that moves to another engine goes on with the numbers that it would have had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dynamo.errors import EngineError
from dynamo.protocols.llm import SamplingOptions, TokenLogprob

__all__ = ["Guide", "SampledToken", "Sampler", "sample_tokens", "token_logprob"]

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

_SEED_MASK = (1 << 64) - 1


class Guide(Protocol):
    """A grammar at the current position of one sequence (`dynamo.reference.guided`)."""

    @property
    def finished(self) -> bool:
        """Nothing may follow."""
        ...

    def mask(self, logits: Array) -> None:
        """Set the logits of tokens that may not come next to -inf, in place."""
        ...

    def accept(self, token_id: int) -> None:
        """Move past `token_id`."""
        ...


@dataclasses.dataclass(slots=True)
class SampledToken:
    """One drawn token."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: EngineError | None = None
    """Set in place of a token when no token can be drawn."""


class Sampler:
    """How one sequence's tokens are drawn."""

    __slots__ = ("_bias_ids", "_bias_values", "_min_tokens", "_options", "_prompt_ids", "_seed", "_stop_ids", "guide")

    def __init__(
        self,
        options: SamplingOptions,
        *,
        seed: int,
        prompt_ids: Ids,
        stop_ids: Sequence[int] = (),
        min_tokens: int = 0,
        guide: Guide | None = None,
    ) -> None:
        self._options = options
        self._seed = (options.seed if options.seed is not None else seed) & _SEED_MASK
        self._prompt_ids = prompt_ids
        self._stop_ids = list(stop_ids)
        self._min_tokens = min_tokens
        self._bias_ids = list(options.logit_bias or {})
        self._bias_values = np.array(list((options.logit_bias or {}).values()), np.float32)
        self.guide = guide

    def is_argmax(self, output_count: int) -> bool:
        """Whether the next token is simply the likeliest one, with nothing else asked for."""
        options = self._options
        return (
            options.temperature == 0
            and options.logprobs is None
            and self.guide is None
            and not self._bias_ids
            and output_count >= self._min_tokens
            and options.repetition_penalty == 1
            and options.frequency_penalty == 0
            and options.presence_penalty == 0
        )

    def sample(self, logits: Array, output_ids: Ids) -> SampledToken:
        """Draw the token that follows `output_ids` from `logits` ``[vocab_size]``, which are not changed."""
        scores = logits.copy()
        self._penalize(scores, output_ids)
        if self._bias_ids:
            scores[self._bias_ids] += self._bias_values
        if len(output_ids) < self._min_tokens:
            scores[self._stop_ids] = -np.inf
        if self.guide is not None:
            self.guide.mask(scores)
        if not np.isfinite(scores.max()):
            return SampledToken(0, error=EngineError("no token can follow: every logit is masked or not a number"))
        token = int(scores.argmax()) if self._options.temperature == 0 else self._draw(scores, len(output_ids))
        if self._options.logprobs is None:
            return SampledToken(token)
        return SampledToken(token, token_logprob(logits, token, self._options.logprobs))

    def _penalize(self, scores: Array, output_ids: Ids) -> None:
        """Repetition as in CTRL (arXiv 1909.05858), over prompt and output; the other two over the output."""
        options = self._options
        if options.repetition_penalty != 1:
            seen = np.unique(np.concatenate([self._prompt_ids, output_ids]))
            own, penalty = scores[seen], np.float32(options.repetition_penalty)
            scores[seen] = np.where(own > 0, own / penalty, own * penalty)
        if options.frequency_penalty or options.presence_penalty:
            seen, counts = np.unique(output_ids, return_counts=True)
            scores[seen] -= (options.frequency_penalty * counts + options.presence_penalty).astype(np.float32)

    def _draw(self, scores: Array, position: int) -> int:
        """Inverse transform sampling of the filtered distribution."""
        options = self._options
        scaled = (scores.astype(np.float64) - scores.max()) / options.temperature
        if 0 < options.top_k < len(scaled):
            scaled[scaled < np.partition(scaled, -options.top_k)[-options.top_k]] = -np.inf
        weights = np.exp(scaled)
        if options.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= options.top_p * weights.sum()]] = 0.0
        if options.min_p > 0:
            weights[weights < options.min_p] = 0.0  # the likeliest token has weight 1
        cumulative = np.cumsum(weights)
        return int(np.searchsorted(cumulative, _uniform(self._seed, position) * cumulative[-1], side="right"))


def sample_tokens(samplers: Sequence[Sampler], logits: Array, outputs: Sequence[Ids]) -> list[SampledToken]:
    """One token per sequence from ``[n, vocab_size]``; `outputs` are the ids that each has generated so far."""
    likeliest = logits.argmax(axis=1)
    finite = np.isfinite(logits[np.arange(len(likeliest)), likeliest]).tolist()
    tokens = likeliest.tolist()
    return [
        SampledToken(tokens[row])
        if finite[row] and sampler.is_argmax(len(outputs[row]))
        else sampler.sample(logits[row], outputs[row])
        for row, sampler in enumerate(samplers)
    ]


def token_logprob(logits: Array, token_id: int, top: int) -> TokenLogprob:
    """Log-probability of `token_id` and of the `top` likeliest tokens, likeliest first."""
    exact: npt.NDArray[Any] = logits.astype(np.float64)
    exact -= exact.max()
    exact -= np.log(np.exp(exact).sum())
    likeliest: list[tuple[int, float]] = []
    if top:
        candidates = np.argpartition(-exact, min(top, len(exact) - 1))[:top]
        ordered = candidates[np.argsort(-exact[candidates], kind="stable")]
        likeliest = list(zip(ordered.tolist(), exact[ordered].tolist(), strict=True))
    return TokenLogprob(token_id, float(exact[token_id]), likeliest)


def _uniform(seed: int, position: int) -> float:
    """In [0, 1), 53 bits of Philox (Salmon et al., SC 2011) under key `seed` at counter `position`."""
    raw = int(np.random.Philox(key=seed, counter=position).random_raw())
    return (raw >> 11) * 2.0**-53
