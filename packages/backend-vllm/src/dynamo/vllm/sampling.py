"""Our sampling options in vLLM's words, one by one; what has no counterpart is refused, not dropped.

docs/how-to/serve-with-vllm.md has the same as a table. Ranges are vLLM's to check.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from dynamo.errors import InvalidRequest
from dynamo.protocols.llm import GuidedDecoding, PreprocessedRequest, SamplingOptions, StopConditions

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

__all__ = ["GUIDED_KINDS", "sampling_arguments", "sampling_params"]

GUIDED_KINDS = ("json", "json_object", "regex", "choice", "grammar")

#: Options that vLLM calls as we do and means as we do.
_EQUAL = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logprobs",
    "prompt_logprobs",
)
_MAPPED = {*_EQUAL, "seed", "logit_bias"}
_MAPPED_STOPS = {"max_tokens", "min_tokens", "stop_token_ids", "ignore_eos"}
#: vLLM takes the seed -1 for none.
_SEED_FOR_MINUS_ONE = (1 << 63) - 1


def sampling_params(request: PreprocessedRequest) -> SamplingParams:
    """The parameters of one request. Imports vLLM.

    Raises:
        InvalidRequest: an option has no counterpart, or its grammar cannot be one.
        ValueError: vLLM refuses a value; also as its own errors, see `dynamo.vllm.foreign_errors`.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    arguments = sampling_arguments(request)
    if request.guided is not None:
        arguments["structured_outputs"] = StructuredOutputsParams(**_guided(request.guided))
    # Nobody else holds these, so vLLM need not copy them.
    return SamplingParams(output_kind=RequestOutputKind.DELTA, detokenize=False, skip_clone=True, **arguments)


def sampling_arguments(request: PreprocessedRequest) -> dict[str, Any]:
    """Keywords of vLLM's `SamplingParams`, without the grammar.

    Raises:
        InvalidRequest: an option that this adapter does not know is not at its default.
    """
    sampling, stop, prior = request.sampling, request.stop, request.prior_output_tokens
    _refuse_unmapped(sampling, _MAPPED)
    _refuse_unmapped(stop, _MAPPED_STOPS)
    arguments = {name: getattr(sampling, name) for name in _EQUAL}
    arguments["seed"] = _SEED_FOR_MINUS_ONE if sampling.seed == -1 else sampling.seed
    arguments["logit_bias"] = _logit_bias(request)
    arguments["max_tokens"] = stop.max_tokens
    arguments["min_tokens"] = max(0, stop.min_tokens - prior)
    arguments["stop_token_ids"] = stop.stop_token_ids
    arguments["ignore_eos"] = stop.ignore_eos
    return arguments


def _logit_bias(request: PreprocessedRequest) -> dict[int, float] | None:
    """The request's own, and the penalties that the earlier output of a migrated stream has earned.

    vLLM counts the tokens that it made itself. Output of another worker is prompt to it: its penalties are constant,
    which is what a bias is. A token that was made on both sides is penalised for its presence twice.
    """
    sampling = request.sampling
    if not request.prior_output_tokens or not (sampling.frequency_penalty or sampling.presence_penalty):
        return sampling.logit_bias
    bias = dict(sampling.logit_bias or {})
    for token, times in Counter(request.prompt()[-request.prior_output_tokens :].tolist()).items():
        bias[token] = bias.get(token, 0.0) - times * sampling.frequency_penalty - sampling.presence_penalty
    return bias


def _guided(guided: GuidedDecoding) -> dict[str, Any]:
    if guided.kind not in GUIDED_KINDS:
        raise InvalidRequest(f"vLLM does not know grammars of kind {guided.kind!r}", param=guided.param or "guided")
    if guided.kind == "json_object":
        return {"json_object": True}
    if guided.kind != "choice":
        return {guided.kind: guided.value}
    try:
        choices = json.loads(guided.value)
    except ValueError as error:
        raise InvalidRequest(f"the choices are not JSON: {error}", param=guided.param or "guided") from error
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise InvalidRequest("the choices are not a list of strings", param=guided.param or "guided")
    return {"choice": choices}


def _refuse_unmapped(options: SamplingOptions | StopConditions, mapped: set[str]) -> None:
    default = type(options)()
    for name in options.__struct_fields__:
        if name not in mapped and getattr(options, name) != getattr(default, name):
            raise InvalidRequest(f"the vLLM backend does not support {name}", param=name)
