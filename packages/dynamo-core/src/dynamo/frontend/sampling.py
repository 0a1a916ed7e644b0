"""From OpenAI parameters to what an engine understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamo.errors import InvalidRequest
from dynamo.frontend.body_bounds import schema_text
from dynamo.frontend.grammars import named_grammar
from dynamo.frontend.requests import ChatRequest, CommonParameters, CompletionRequest
from dynamo.protocols.llm import GuidedDecoding, SamplingOptions, StopConditions

__all__ = ["guided_decoding", "sampling_options", "stop_conditions", "stop_strings", "wants_format"]

#: Seeds of `n` choices are seed + i; engines take them as unsigned 64-bit numbers.
_SEED_MASK = (1 << 64) - 1
#: Keeps the likeliest token alone, as OpenAI's 0 does; engines take no 0.
_LEAST_TOP_P = 1e-6


def sampling_options(request: CommonParameters, defaults: Mapping[str, float], choice: int) -> SamplingOptions:
    """Sampling of choice number `choice`.

    `defaults` are the model's own (generation_config.json), used where the client says nothing.
    """

    def pick(name: str, given: float | None, fallback: float) -> float:
        return given if given is not None else defaults.get(name, fallback)

    return SamplingOptions(
        temperature=pick("temperature", request.temperature, 1.0),
        top_p=max(_LEAST_TOP_P, pick("top_p", request.top_p, 1.0)),
        top_k=max(0, int(pick("top_k", request.top_k, 0))),
        min_p=pick("min_p", request.min_p, 0.0),
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        repetition_penalty=pick("repetition_penalty", request.repetition_penalty, 1.0),
        seed=None if request.seed is None else (request.seed + choice) & _SEED_MASK,
        logit_bias={int(token): value for token, value in request.logit_bias.items()} if request.logit_bias else None,
        logprobs=_logprobs(request),
        prompt_logprobs=None,
    )


def stop_conditions(request: CommonParameters, max_tokens: int) -> StopConditions:
    """Stop conditions; `max_tokens` is already bounded by the context length."""
    return StopConditions(
        max_tokens=max_tokens,
        min_tokens=min(request.min_tokens or 0, max_tokens),
        stop_token_ids=request.stop_token_ids or [],
        ignore_eos=request.ignore_eos,
    )


def stop_strings(request: CommonParameters) -> list[str]:
    """The stop strings, always as a list."""
    return [request.stop] if isinstance(request.stop, str) else list(request.stop or [])


def wants_format(request: ChatRequest) -> bool:
    """Whether ``response_format`` asks for more than text."""
    return request.response_format is not None and request.response_format.get("type") != "text"


def guided_decoding(request: CommonParameters, supported: list[str]) -> GuidedDecoding | None:
    """The grammar that ``response_format``, or one of vLLM's parameters, asks for.

    Raises:
        InvalidRequest: it is malformed, there are several, or the model's engine cannot do it.
    """
    guided = named_grammar(request)
    if isinstance(request, ChatRequest):
        if guided is not None:
            _check_alone(guided.param, request)
        elif request.response_format is not None and wants_format(request):
            guided = _formatted(request.response_format)
    if guided is not None and guided.kind not in supported:
        raise InvalidRequest(
            f"the engine that serves this model has no structured output ({guided.kind})", param=guided.param
        )
    return guided


def _check_alone(param: str, request: ChatRequest) -> None:
    other = None
    if wants_format(request):
        other = "response_format"
    elif request.tool_choice == "required" or isinstance(request.tool_choice, dict):
        other = "tool_choice"
    if other is not None:
        raise InvalidRequest(f"'{param}' cannot be combined with '{other}', which forces the answer too", param=param)


def _formatted(wanted: dict[str, Any]) -> GuidedDecoding:
    kind = wanted.get("type")
    if kind == "json_object":
        return GuidedDecoding("json_object", param="response_format")
    if kind == "json_schema":
        schema = schema_text(_schema(wanted), "response_format.json_schema.schema")
        return GuidedDecoding("json", schema, "response_format")
    raise InvalidRequest(
        f"'response_format.type' is {kind!r}; use text, json_object or json_schema", param="response_format.type"
    )


def _schema(wanted: dict[str, Any]) -> dict[str, Any]:
    spec = wanted.get("json_schema")
    schema = spec.get("schema") if isinstance(spec, dict) else None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            "'response_format.json_schema.schema' must be an object", param="response_format.json_schema.schema"
        )
    return schema


def _logprobs(request: CommonParameters) -> int | None:
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    if isinstance(request, CompletionRequest):
        return request.logprobs
    return None
