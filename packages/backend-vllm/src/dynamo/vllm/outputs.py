"""vLLM's outputs in our words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynamo.protocols.llm import FinishReason, LLMEngineOutput, PreprocessedRequest, TokenLogprob, Usage

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import PoolingRequestOutput, RequestOutput

__all__ = ["StreamConverter", "embedding_output"]

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "abort": "cancelled",
    "error": "error",
    "repetition": "stop",
}
#: Stands for "impossible" in a list of likeliest tokens, as OpenAI's API does; minus infinity is not JSON.
_IMPOSSIBLE = -9999.0


class StreamConverter:
    """Converts the outputs of one stream, and counts its tokens."""

    def __init__(self, request: PreprocessedRequest, prompt: Sequence[int]) -> None:
        self._prompt = prompt
        self._prompt_tokens = len(prompt) - request.prior_output_tokens
        self._top = request.sampling.logprobs
        self._prompt_top = request.sampling.prompt_logprobs
        self._sent_tokens = 0
        self._cached_tokens = 0

    def convert(self, output: RequestOutput) -> LLMEngineOutput:
        """What one output adds; the id that ended the stream is left out."""
        completion = output.outputs[0]
        ids = list(completion.token_ids)
        finish = completion.finish_reason
        if finish == "stop":
            del ids[-1:]
        self._sent_tokens += len(ids)
        self._cached_tokens = output.num_cached_tokens or self._cached_tokens
        converted = LLMEngineOutput(ids)
        if self._top is not None and completion.logprobs:
            rows = zip(ids, completion.logprobs, strict=False)
            converted.logprobs = [_logprob(token, row, self._top) for token, row in rows]
        if self._prompt_top is not None and output.prompt_logprobs:
            rows = zip(self._prompt[: self._prompt_tokens], output.prompt_logprobs, strict=False)
            converted.prompt_logprobs = [row and _logprob(token, row, self._prompt_top) for token, row in rows]
        if output.kv_transfer_params:
            converted.kv_transfer_params = output.kv_transfer_params
        if finish is not None:
            converted.finish_reason = _FINISH[finish]
            converted.usage = self._usage()
            if finish == "stop" and isinstance(completion.stop_reason, int):
                converted.stop_reason = completion.stop_reason
        return converted

    def _usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._sent_tokens, min(self._cached_tokens, self._prompt_tokens))


def embedding_output(output: PoolingRequestOutput, prompt_tokens: int) -> LLMEngineOutput:
    """The vector of a prompt, as float32."""
    vector = np.asarray(output.outputs.data.float().cpu().numpy(), dtype="<f4")
    return LLMEngineOutput(
        embedding=vector.tobytes(),
        finish_reason="stop",
        usage=Usage(prompt_tokens, 0, min(output.num_cached_tokens or 0, prompt_tokens)),
    )


def _logprob(token: int, row: Mapping[int, Logprob], top: int) -> TokenLogprob:
    """One position: `row` has the `top` likeliest and the sampled token, which may be one of them."""
    best = sorted(row.items(), key=lambda item: item[1].rank or len(row) + 1)[:top]
    return TokenLogprob(token, _finite(row[token].logprob), [(other, _finite(entry.logprob)) for other, entry in best])


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE
