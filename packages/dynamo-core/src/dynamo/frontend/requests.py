"""OpenAI request bodies: their shape, their bounds, and errors that name the field at fault.

Shapes are msgspec structs, decoded in one pass; a field that OpenAI's clients may send and that means nothing here is
ignored, as OpenAI does. Ranges are checked after decoding, by :func:`check_common`.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

import msgspec

from dynamo.config.settings import nearest
from dynamo.errors import InvalidRequest
from dynamo.frontend.body_bounds import check_count, check_ids_length, check_messages, decode_json
from dynamo.frontend.nvext import AgentHints, Nvext
from dynamo.frontend.text_rules import in_words
from dynamo.protocols.routing import RouterOverrides

__all__ = [
    "ChatRequest",
    "CommonParameters",
    "CompletionRequest",
    "Priority",
    "StreamOptions",
    "StructuredOutputs",
    "check_chat",
    "check_common",
    "check_completion",
    "check_range",
    "check_stop",
    "decode_body",
    "take_hints",
]

R = TypeVar("R", bound=msgspec.Struct)
#: What does not fit engines' integers is refused here: on the request plane it could not even be encoded.
Priority: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
STOP_STRING_LIMIT_CHARACTERS = 1024
_TOKEN_ID_DIGITS = 10
#: Of a parameter that nobody knows, which may be as long as the body.
_SHOWN_CHARACTERS = 64
#: A high one that no low one follows; a backslash that is escaped itself begins no escape.
_LONE_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_PATH = re.compile(r" - at `\$\.?(.*)`\Z")


class StreamOptions(msgspec.Struct):
    """``stream_options``."""

    include_usage: bool | None = None


class StructuredOutputs(msgspec.Struct):
    """``structured_outputs``, as vLLM's clients send it: one grammar, under the name of its kind."""

    #: How JSON is written, which engines decide, and what later versions of vLLM left out.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"disable_additional_properties", "disable_any_whitespace", "disable_fallback", "whitespace_pattern"}
    )

    json: str | dict[str, Any] | None = None
    """A schema, or its text."""
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None
    """Refused."""


#: Parameters that are objects of our own.
_NESTED: dict[str, type[msgspec.Struct]] = {
    "nvext": Nvext,
    "agent_hints": AgentHints,
    "router": RouterOverrides,
    "structured_outputs": StructuredOutputs,
}


class CommonParameters(msgspec.Struct, kw_only=True):
    """What chat and completion requests share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool = False
    logit_bias: dict[str, float] | None = None
    cache_salt: str | None = None
    priority: Priority = 0
    user: str | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    """What `structured_outputs` was before: a field for each kind."""
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    nvext: Nvext | None = None


class ChatRequest(CommonParameters, kw_only=True):
    """``POST /v1/chat/completions``."""

    #: OpenAI's parameters that have no effect here; a strict frontend takes them all the same.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "audio",
            "metadata",
            "modalities",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "store",
            "verbosity",
            "web_search_options",
        }
    )

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    """What `tools` was before; refused, as a client that sends it waits for calls."""
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class CompletionRequest(CommonParameters, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    """A text, texts, token ids, or lists of token ids; :func:`check_completion` refuses mixtures."""
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None


def decode_body(body: bytes, request_type: type[R], *, strict: bool = False) -> R:
    """Decode a JSON body.

    Raises:
        InvalidRequest: it is not JSON, holds too much, or a field has the wrong type; `param` is the path of the field.
            With `strict` also when a parameter is unknown.
    """
    try:
        request = _decoded(body, request_type)
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw]) if strict else {}
    except msgspec.ValidationError as error:
        raise _validation_error(in_words(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if _LONE_SURROGATE.search(body):
            # Of one at the end of a string msgspec says that the body was cut short.
            raise InvalidRequest(
                "the request body has a lone surrogate, half a character, in a string",
                reason="invalid_json",
                hint="send valid Unicode text",
            ) from error
        raise InvalidRequest(f"the request body is not valid JSON: {error}", reason="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequest("the request body is nested too deeply", reason="invalid_json") from error
    _refuse_unknown(given, request_type)
    return request


def _decoded(body: bytes, kind: type[R]) -> R:
    """`body`, whose parameters may be null: programs of typed languages write all of them, said or not."""
    try:
        return decode_json(body, kind)
    except msgspec.ValidationError as error:
        if "got `null`" not in str(error):
            raise
    given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return decode_json(msgspec.json.encode({name: raw for name, raw in given.items() if bytes(raw) != b"null"}), kind)


def take_hints(request: CommonParameters) -> None:
    """Make parameters of what others say in their own way: ``nvext``, which counts less, and ``reasoning_effort``."""
    if isinstance(request, ChatRequest) and request.reasoning_effort is not None:
        # What templates that know about reasoning read; others leave it alone.
        effort = request.reasoning_effort
        variables = {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
        request.chat_template_kwargs = {**variables, **(request.chat_template_kwargs or {})}
    nvext = request.nvext
    if nvext is None:
        return
    if nvext.greed_sampling:
        request.temperature = 0.0
    if request.cache_salt is None:
        request.cache_salt = nvext.cache_salt
    if nvext.agent_hints is not None and nvext.agent_hints.priority is not None and not request.priority:
        request.priority = -nvext.agent_hints.priority


def check_common(request: CommonParameters, *, max_stop_strings: int) -> None:
    """Check ranges.

    Raises:
        InvalidRequest: a value is out of range; `param` names it.
    """
    check_range("temperature", request.temperature, 0, 2)
    check_range("top_p", request.top_p, 0, 1)
    check_range("min_p", request.min_p, 0, 1)
    check_range("frequency_penalty", request.frequency_penalty, -2, 2)
    check_range("presence_penalty", request.presence_penalty, -2, 2)
    check_range("repetition_penalty", request.repetition_penalty, 0, 10, open_low=True)
    check_range("n", request.n, 1, math.inf)
    check_range("max_tokens", request.max_tokens, 1, math.inf)
    check_range("min_tokens", request.min_tokens, 0, math.inf)
    check_range("top_k", request.top_k, -1, 2**31 - 1)
    check_range("seed", request.seed, -(2**63), 2**63 - 1)
    check_stop(request.stop, max_stop_strings)
    check_count("stop_token_ids", request.stop_token_ids)
    if request.nvext is not None:
        check_count("nvext.annotations", request.nvext.annotations)
        check_count("nvext.extra_fields", request.nvext.extra_fields)
    _check_logit_bias(request.logit_bias)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true", param="stream_options")


def check_chat(request: ChatRequest) -> None:
    """Check what only chat requests have.

    Raises:
        InvalidRequest: `param` names the field.
    """
    if not request.messages:
        raise InvalidRequest("'messages' must have at least one message", param="messages")
    check_messages(request.messages)
    if request.functions:
        raise InvalidRequest("'functions' is not supported; use 'tools'", param="functions")
    check_count("tools", request.tools)
    check_count("chat_template_kwargs", request.chat_template_kwargs)
    for index, message in enumerate(request.messages):
        _check_message(index, message)
    check_range("max_completion_tokens", request.max_completion_tokens, 1, math.inf)
    check_range("top_logprobs", request.top_logprobs, 0, 20)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")


def check_completion(request: CompletionRequest, context_length_tokens: int) -> None:
    """Check what only completion requests have; the context is the model's.

    Raises:
        InvalidRequest: `param` names the field.
    """
    if request.suffix:
        raise InvalidRequest("'suffix' is not supported", param="suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequest("'best_of' is not supported; use 'n'", param="best_of")
    check_range("logprobs", request.logprobs, 0, 20)
    if len(request.prompt) == 0:
        raise InvalidRequest("'prompt' must not be empty", param="prompt")
    if isinstance(request.prompt[0], int):
        check_ids_length(request.prompt, context_length_tokens, "the prompt", "prompt")
    if len(set(map(type, request.prompt))) > 1:
        raise InvalidRequest("'prompt' mixes texts and token ids", param="prompt")


def _check_message(index: int, message: dict[str, Any]) -> None:
    role = message.get("role")
    param = f"messages[{index}].role"
    if role is None:
        raise InvalidRequest(f"'{param}' is missing", param=param)
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(f"'{param}' is {role!r}; use one of {', '.join(sorted(ROLES))}", param=param)
    content = message.get("content")
    if content is None and role != "assistant":
        raise InvalidRequest(f"'messages[{index}].content' is missing", param=f"messages[{index}].content")
    if content is not None and not isinstance(content, (str, list)):
        raise InvalidRequest(
            f"'messages[{index}].content' must be a string or a list of parts", param=f"messages[{index}].content"
        )


def check_stop(stop: str | list[str] | None, most: int, param: str = "stop") -> None:
    """Check stop strings.

    Raises:
        InvalidRequest: they are more than `most`, or one is empty or too long.
    """
    strings = [stop] if isinstance(stop, str) else stop or []
    if len(strings) > most:
        raise InvalidRequest(f"'{param}' has {len(strings)} strings; at most {most} are allowed", param=param)
    for index, text in enumerate(strings):
        if not text:
            raise InvalidRequest("a stop string must not be empty", param=f"{param}[{index}]")
        if len(text) > STOP_STRING_LIMIT_CHARACTERS:
            raise InvalidRequest(
                f"a stop string may have {STOP_STRING_LIMIT_CHARACTERS} characters, this one has {len(text)}",
                param=f"{param}[{index}]",
            )


def _check_logit_bias(bias: dict[str, float] | None) -> None:
    check_count("logit_bias", bias)
    for token, value in (bias or {}).items():
        if not token.isascii() or not token.isdigit() or len(token) > _TOKEN_ID_DIGITS or int(token) >= 2**32:
            raise InvalidRequest(f"'logit_bias' key {token!r} is not a token id", param="logit_bias")
        check_range(f"logit_bias.{token}", value, -100, 100)


def check_range(param: str, value: float | None, low: float, high: float, *, open_low: bool = False) -> None:
    """Check one value; None passes.

    Raises:
        InvalidRequest: it is below `low` (or equal with `open_low`), above `high`, or not a number.
    """
    if value is None:
        return
    # Written so that NaN, which compares false to everything, is refused.
    if not (low < value if open_low else low <= value) or not value <= high:
        span = f"{'above' if open_low else 'at least'} {low}"
        span += "" if high == math.inf else f" and at most {high}"
        raise InvalidRequest(f"'{param}' is {value!r}; it must be {span}", param=param)


@functools.lru_cache(maxsize=64)
def _parameters(kind: type[msgspec.Struct]) -> frozenset[str]:
    # Once per type: msgspec evaluates all annotations again for each call.
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def _refuse_unknown(given: dict[str, msgspec.Raw], kind: type[msgspec.Struct], path: str = "") -> None:
    known = _parameters(kind)
    for name, value in given.items():
        if name not in known and name not in getattr(kind, "IGNORED", ()):
            shown = name[:_SHOWN_CHARACTERS]
            hint = nearest(shown, sorted(known))
            raise InvalidRequest(
                f"unknown parameter '{path}{shown}'",
                param=f"{path}{shown}",
                reason="unknown_parameter",
                hint=f"did you mean '{path}{hint}'?" if hint else None,
            )
        inner = _NESTED.get(name)
        if inner is not None and bytes(value) != b"null":
            _refuse_unknown(msgspec.json.decode(value, type=dict[str, msgspec.Raw]), inner, f"{path}{name}.")


def _validation_error(message: str) -> InvalidRequest:
    found = _PATH.search(message)
    param = found.group(1) if found and found.group(1) else None
    text = _PATH.sub("", message)
    missing = re.match(r"Object missing required field `(\w+)`", text)
    if missing:
        param = f"{param}.{missing.group(1)}" if param else missing.group(1)
        return InvalidRequest(f"'{param}' is missing", param=param)
    where = f"'{param}'" if param else "the request body"
    return InvalidRequest(f"{where}: {text[:1].lower()}{text[1:]}", param=param)
