"""From OpenAI parameters to what an engine understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamo.errors import InvalidRequest
from dynamo.frontend.body_bounds import schema_text
from dynamo.frontend.requests import ChatRequest, CommonParameters, CompletionRequest
from dynamo.protocols.llm import GuidedDecoding, SamplingOptions, StopConditions

__all__ = ["guided_decoding", "sampling_options", "stop_conditions", "stop_strings"]

#: Seeds of `n` choices are seed + i; engines take them as unsigned 64-bit numbers.
_SEED_MASK = (1 << 64) - 1


def sampling_options(request: CommonParameters, defaults: Mapping[str, float], choice: int) -> SamplingOptions:
    """Sampling of choice number `choice`.

    `defaults` are the model's own (generation_config.json), used where the client says nothing.
    """

    def pick(name: str, given: float | None, fallback: float) -> float:
        return given if given is not None else defaults.get(name, fallback)

    return SamplingOptions(
        temperature=pick("temperature", request.temperature, 1.0),
        top_p=pick("top_p", request.top_p, 1.0),
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


def guided_decoding(request: ChatRequest, supported: list[str]) -> GuidedDecoding | None:
    """The grammar that ``response_format`` asks for.

    Raises:
        InvalidRequest: the format is malformed, or the model's engine cannot do it.
    """
    wanted = request.response_format
    if wanted is None or wanted.get("type") == "text":
        return None
    kind = wanted.get("type")
    if kind == "json_object":
        guided = GuidedDecoding(kind="json_object")
    elif kind == "json_schema":
        schema = schema_text(_schema(wanted), "response_format.json_schema.schema")
        guided = GuidedDecoding(kind="json", value=schema)
    else:
        raise InvalidRequest(
            f"'response_format.type' is {kind!r}; use text, json_object or json_schema", param="response_format.type"
        )
    if guided.kind not in supported:
        raise InvalidRequest(
            f"the engine that serves this model has no structured output ({kind})", param="response_format"
        )
    return guided


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
