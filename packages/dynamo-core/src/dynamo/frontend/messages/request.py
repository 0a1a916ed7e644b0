"""The bodies of ``/v1/messages`` and ``/v1/messages/count_tokens``, and the chat request that they mean."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.body_bounds import check_count, check_messages
from dynamo.frontend.messages.conversation import chat_messages
from dynamo.frontend.requests import ChatRequest, Priority, check_range, check_stop

__all__ = ["MessageRequest", "TokenCountRequest", "chat_request", "check_message_request"]

_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
#: Whether templates that can be told so let the model think.
_THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}


class TokenCountRequest(msgspec.Struct, kw_only=True):
    """``POST /v1/messages/count_tokens``: what becomes part of the prompt."""

    #: Parameters of the API that have no effect here; a strict frontend takes them all the same.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "context_management", "service_tier"})

    model: str
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    mcp_servers: Any = None
    container: Any = None


class MessageRequest(TokenCountRequest, kw_only=True):
    """``POST /v1/messages``."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    cache_salt: str | None = None
    priority: Priority = 0


def check_message_request(request: MessageRequest, max_stop_sequences: int) -> None:
    """Check ranges.

    Raises:
        InvalidRequest: a value is out of range; `param` names it.
    """
    check_range("max_tokens", request.max_tokens, 1, math.inf)
    check_stop(request.stop_sequences, max_stop_sequences, "stop_sequences")


def chat_request(request: TokenCountRequest) -> ChatRequest:
    """The chat request that `request` means.

    Raises:
        InvalidRequest: something is malformed or not supported; `param` names it.
    """
    for param in ("mcp_servers", "container"):
        if getattr(request, param):
            raise InvalidRequest(f"'{param}' is not supported", param=param)
    check_messages(request.messages)
    check_count("tools", request.tools)
    if isinstance(request.system, list):
        check_count("system", request.system)
    messages = chat_messages(request.system, request.messages)
    # A last message of the assistant is the beginning of the answer.
    prefilled = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    chat = ChatRequest(
        model=request.model,
        messages=messages,
        tools=[_chat_tool(f"tools[{index}]", tool) for index, tool in enumerate(request.tools or [])] or None,
        tool_choice=_chat_tool_choice(request.tool_choice),
        parallel_tool_calls=False if (request.tool_choice or {}).get("disable_parallel_tool_use") is True else None,
        response_format=_response_format(request.output_config),
        chat_template_kwargs=_template_variables(request),
        continue_final_message=prefilled,
    )
    if isinstance(request, MessageRequest):
        _add_sampling(chat, request)
    return chat


def _add_sampling(chat: ChatRequest, request: MessageRequest) -> None:
    chat.max_tokens = request.max_tokens
    chat.stream = bool(request.stream)
    chat.stop = request.stop_sequences
    chat.temperature = request.temperature
    chat.top_p = request.top_p
    chat.top_k = request.top_k
    chat.cache_salt = request.cache_salt
    chat.priority = request.priority
    user = (request.metadata or {}).get("user_id")
    chat.user = user if isinstance(user, str) else None


def _chat_tool(param: str, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise InvalidRequest(
            f"'{param}.type' is {tool['type']!r}; tools of the server are not supported", param=f"{param}.type"
        )
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise InvalidRequest(f"'{param}.name' is missing", param=f"{param}.name")
    if not isinstance(tool.get("input_schema"), dict):
        raise InvalidRequest(f"'{param}.input_schema' must be an object", param=f"{param}.input_schema")
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _chat_tool_choice(choice: dict[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    kind = choice.get("type")
    if kind == "tool" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    chosen = _TOOL_CHOICES.get(kind) if isinstance(kind, str) else None
    if chosen is None:
        raise InvalidRequest(
            "'tool_choice.type' must be auto, any, none, or tool with a 'name'", param="tool_choice.type"
        )
    return chosen


def _response_format(config: dict[str, Any] | None) -> dict[str, Any] | None:
    wanted = (config or {}).get("format")
    if wanted is None:
        return None
    schema = wanted.get("schema") if isinstance(wanted, dict) and wanted.get("type") == "json_schema" else None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            "'output_config.format' must be of type json_schema with a 'schema'", param="output_config.format"
        )
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}


def _template_variables(request: TokenCountRequest) -> dict[str, Any] | None:
    """What chat templates that know about reasoning read; others leave it alone."""
    variables: dict[str, Any] = {}
    if request.thinking is not None:
        kind = request.thinking.get("type")
        if not isinstance(kind, str) or kind not in _THINKING:
            raise InvalidRequest(
                f"'thinking.type' is {kind!r}; use one of {', '.join(_THINKING)}", param="thinking.type"
            )
        variables["enable_thinking"] = _THINKING[kind]
    effort = (request.output_config or {}).get("effort")
    if isinstance(effort, str):
        variables["reasoning_effort"] = effort
    return variables or None
