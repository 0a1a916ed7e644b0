"""Checks a request before it reaches the engine thread. Inputs are hostile: everything that is indexed is bounded."""

from __future__ import annotations

import dataclasses
import math

from dynamo.errors import InvalidRequest
from dynamo.protocols.llm import PreprocessedRequest, SamplingOptions

__all__ = ["RequestLimits", "check_request"]

#: Most alternatives per position that logprobs may ask for.
MAX_LOGPROBS = 64


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """What the engine can take."""

    vocab_size: int
    max_model_len: int


def check_request(request: PreprocessedRequest, limits: RequestLimits) -> None:
    """Refuse what cannot be computed.

    Raises:
        InvalidRequest: the prompt is empty, too long (`reason` ``context_length_exceeded``) or not of this vocabulary,
            or an option is out of range; `param` names it.
    """
    if len(request.token_ids) % 4:
        raise InvalidRequest("token_ids is not a whole number of packed uint32", param="token_ids")
    prompt = request.prompt()
    _check(len(prompt) > 0, "the prompt is empty", "token_ids")
    longest = limits.max_model_len - (0 if request.embed else 1)
    if len(prompt) > longest:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens; this model takes {limits.max_model_len}, prompt and output together",
            param="token_ids",
            reason="context_length_exceeded",
            hint="shorten the prompt, or serve with a larger --max-model-len or KV pool",
        )
    largest = int(prompt.max())
    _check(largest < limits.vocab_size, f"token id {largest} is not in the vocabulary", "token_ids")
    _check(
        0 <= request.prior_output_tokens < len(prompt),
        f"{request.prior_output_tokens} prior output tokens cannot be part of {len(prompt)}",
        "prior_output_tokens",
    )
    max_tokens = request.stop.max_tokens
    _check(max_tokens is None or max_tokens >= 1, f"max_tokens is {max_tokens}; it must be positive", "max_tokens")
    _check(request.dp_rank in (None, 0), f"there is no data-parallel rank {request.dp_rank}", "dp_rank")
    stop_ids = request.stop.stop_token_ids
    _check(
        all(0 <= token < limits.vocab_size for token in stop_ids),
        f"stop_token_ids {stop_ids} has an unknown id",
        "stop_token_ids",
    )
    _check_sampling(request.sampling, limits.vocab_size)


def _check_sampling(options: SamplingOptions, vocab_size: int) -> None:
    _check(
        _within(options.temperature, 0.0, 100.0), f"temperature {options.temperature} is not in [0, 100]", "temperature"
    )
    _check(0.0 < options.top_p <= 1.0, f"top_p {options.top_p} is not in (0, 1]", "top_p")
    _check(options.top_k >= -1, f"top_k {options.top_k} is negative", "top_k")
    _check(_within(options.min_p, 0.0, 1.0), f"min_p {options.min_p} is not in [0, 1]", "min_p")
    for name in ("frequency_penalty", "presence_penalty"):
        _check(
            _within(getattr(options, name), -10.0, 10.0), f"{name} {getattr(options, name)} is not in [-10, 10]", name
        )
    repetition = options.repetition_penalty
    _check(0.0 < repetition <= 100.0, f"repetition_penalty {repetition} is not in (0, 100]", "repetition_penalty")
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(options, name)
        _check(value is None or 0 <= value <= MAX_LOGPROBS, f"{name} {value} is not in [0, {MAX_LOGPROBS}]", name)
    for token, bias in (options.logit_bias or {}).items():
        _check(
            0 <= token < vocab_size, f"logit_bias names token id {token}, which is not in the vocabulary", "logit_bias"
        )
        _check(math.isfinite(bias), f"logit_bias of token id {token} is {bias}", "logit_bias")


def _within(value: float, low: float, high: float) -> bool:
    return low <= value <= high  # False for NaN


def _check(holds: bool, message: str, param: str) -> None:
    if not holds:
        raise InvalidRequest(message, param=param)
