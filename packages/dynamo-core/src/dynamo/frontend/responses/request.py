"""The body of ``POST /v1/responses``: its shape, what is refused of it, and the chat request that it means."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import msgspec

from dynamo.errors import DynamoError, InvalidRequest
from dynamo.frontend.body_bounds import check_count
from dynamo.frontend.metadata import check_metadata
from dynamo.frontend.requests import ChatRequest, Priority, check_range
from dynamo.frontend.tools import check_tool_name

__all__ = ["ResponseRequest", "chat_request", "check_response_request", "render_error"]

#: What `include` asks for logprobs with.
_LOGPROBS = "message.output_text.logprobs"
#: Fields of chat completions that errors of the pipeline name, and what they are called here.
_PARAMS = {"messages": "input", "max_completion_tokens": "max_output_tokens", "response_format": "text.format"}


class ResponseRequest(msgspec.Struct, kw_only=True):
    """``POST /v1/responses``."""

    #: Parameters of the API that have no effect here; a strict frontend takes them all the same.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "max_tool_calls",
            "prompt_cache_key",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "stream_options",
        }
    )

    model: str
    input: str | list[dict[str, Any]]
    """A user's text, or items; see `dynamo.frontend.responses.items`."""
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    store: bool | None = None
    """None is yes."""
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    truncation: str | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None
    cache_salt: str | None = None
    priority: Priority = 0


def check_response_request(request: ResponseRequest) -> None:
    """Check everything but the input items.

    Raises:
        InvalidRequest: `param` names the field.
    """
    _refuse_unsupported(request)
    check_range("top_logprobs", request.top_logprobs, 0, 20)
    check_range("max_output_tokens", request.max_output_tokens, 1, math.inf)
    check_count("tools", request.tools)
    for index, tool in enumerate(request.tools or []):
        _check_tool(f"tools[{index}]", tool)
    check_metadata(request.metadata or {})


def chat_request(request: ResponseRequest, messages: list[dict[str, Any]]) -> ChatRequest:
    """The chat request that `request` means, with the conversation `messages` so far.

    Raises:
        InvalidRequest: ``tool_choice`` or ``text.format`` is malformed.
    """
    if request.instructions:
        messages = [{"role": "system", "content": request.instructions}, *messages]
    return ChatRequest(
        model=request.model,
        messages=messages,
        stream=bool(request.stream),
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        logprobs=_LOGPROBS in (request.include or ()) or bool(request.top_logprobs),
        top_logprobs=request.top_logprobs or None,
        tools=[_chat_tool(tool) for tool in request.tools] if request.tools else None,
        tool_choice=_chat_tool_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_response_format(request.text),
        reasoning_effort=_effort(request.reasoning),
        cache_salt=request.cache_salt,
        priority=request.priority,
        user=request.user,
    )


def render_error(error: DynamoError) -> tuple[int, dict[str, Any]]:
    """OpenAI's error body, with fields named as they are here."""
    body = error.to_openai()
    param = body["error"]["param"]
    if param is not None:
        field = next(
            (field for field in _PARAMS if param == field or param.startswith((f"{field}.", f"{field}["))), None
        )
        # The messages of the pipeline are not the items of the input: their numbers would mislead.
        body["error"]["param"] = param if field is None else _PARAMS[field]
    return error.http_status, body


def _refuse_unsupported(request: ResponseRequest) -> None:
    unsupported = {
        "background": bool(request.background),
        "conversation": request.conversation is not None,
        "prompt": request.prompt is not None,
        "context_management": bool(request.context_management),
        "moderation": request.moderation is not None,
    }
    for param, is_used in unsupported.items():
        if is_used:
            raise InvalidRequest(f"'{param}' is not supported", param=param)
    if request.truncation not in (None, "disabled"):
        raise InvalidRequest(
            f"'truncation' is {request.truncation!r}; only 'disabled' is supported",
            param="truncation",
            hint="send a shorter input when the context is full",
        )


def _check_tool(param: str, tool: dict[str, Any]) -> None:
    if tool.get("type") != "function":
        raise InvalidRequest(
            f"'{param}.type' is {tool.get('type')!r}; only 'function' is served", param=f"{param}.type"
        )
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise InvalidRequest(f"'{param}.name' is missing", param=f"{param}.name")
    check_tool_name(tool["name"], f"{param}.name")
    if not isinstance(tool.get("parameters") or {}, dict):
        raise InvalidRequest(f"'{param}.parameters' must be an object", param=f"{param}.parameters")


def _chat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {key: tool[key] for key in fields if tool.get(key) is not None}}


def _chat_tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None or choice in ("auto", "none", "required"):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    raise InvalidRequest(
        '\'tool_choice\' must be auto, none, required, or {"type": "function", "name": ...}', param="tool_choice"
    )


def _response_format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    wanted = (text or {}).get("format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise InvalidRequest(
            f"'text.format.type' is {kind!r}; use text, json_object or json_schema", param="text.format.type"
        )
    if not isinstance(wanted.get("schema"), dict):
        raise InvalidRequest("'text.format.schema' must be an object", param="text.format.schema")
    return {"type": "json_schema", "json_schema": {"name": wanted.get("name"), "schema": wanted["schema"]}}


def _effort(reasoning: dict[str, Any] | None) -> str | None:
    effort = (reasoning or {}).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise InvalidRequest("'reasoning.effort' must be a string", param="reasoning.effort")
    return effort
