"""How long one engine step takes: a polynomial in what the step computes. Asked by `core` for every step.

::

    seconds = base + a * prompt tokens + b * (prompt tokens x their context)
                   + c * decoding requests + d * tokens of their context

`base` is the greater of the prefill's and the decode's when a step does both: the weights are read once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["PerfModel"]


@dataclass(frozen=True)
class PerfModel:
    """Coefficients in seconds.

    The defaults are worked out, not measured, for an 8-billion-parameter model in 16 bits (32 layers, hidden size
    4,096, 8 KV heads of 128) on an accelerator that sustains 2.5 TB/s and 450 TFLOP/s: 16 GB of weights are read in
    6.4 ms per step, to which launches and sampling add 1.6 ms; a token costs 2 x 8e9 operations, 35.6 us; attention of
    a prompt token costs 4 x 32 x 4,096 operations per token of context, 1.2 ns; decoding reads 131,072 bytes of KV per
    token of context, 52 ns; sampling and bookkeeping take 20 us per request.
    """

    prefill_base: float = 8.0e-3
    prefill_token: float = 35.6e-6
    prefill_token_context: float = 1.2e-9
    """Per pair of a prompt token and a token before it."""
    decode_base: float = 8.0e-3
    decode_request: float = 20e-6
    decode_context_token: float = 52e-9

    def step_seconds(
        self, prefill_tokens: int, prefill_token_contexts: float, decode_requests: int, decode_context_tokens: int
    ) -> float:
        """Duration of a step.

        Args:
            prefill_tokens: prompt tokens computed.
            prefill_token_contexts: sum over those tokens of the tokens before them.
            decode_requests: requests that get their next token.
            decode_context_tokens: tokens in their contexts, together.
        """
        prefill = decode = base = 0.0
        if prefill_tokens:
            base = self.prefill_base
            prefill = self.prefill_token * prefill_tokens + self.prefill_token_context * prefill_token_contexts
        if decode_requests:
            base = max(base, self.decode_base)
            decode = self.decode_request * decode_requests + self.decode_context_token * decode_context_tokens
        return base + prefill + decode

    def faster_decode(self, ratio: float) -> PerfModel:
        """The same with decoding `ratio` times as fast, as speculative decoding makes it."""
        return replace(
            self,
            decode_base=self.decode_base / ratio,
            decode_request=self.decode_request / ratio,
            decode_context_token=self.decode_context_token / ratio,
        )
