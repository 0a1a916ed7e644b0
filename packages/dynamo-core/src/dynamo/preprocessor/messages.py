"""OpenAI chat messages as chat templates expect them. Called for every chat request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.preprocessor.template_analysis import TemplateNeeds

__all__ = ["argument_object", "normalise_messages"]

#: Content part types that are text, and the key of the text.
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def normalise_messages(messages: Sequence[Mapping[str, Any]], needs: TemplateNeeds) -> list[dict[str, Any]]:
    """Copies of `messages` in the form that the template reads; applying it twice changes nothing.

    Text parts are joined by line ends unless the template loops over parts; a string becomes one part where it loops
    and does not ask for strings; null content becomes empty unless it asks for null; tool call arguments are parsed
    from JSON, see `argument_object`; ``developer`` becomes ``system`` for templates that do not know it.

    Raises:
        InvalidRequest: `param` names what is wrong, e.g. ``messages[0].content[1].type``.
    """
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    return [_message(message, f"messages[{index}]", needs) for index, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str, needs: TemplateNeeds) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest("a message must be an object", param=where)
    role = message.get("role")
    if not isinstance(role, str):
        raise InvalidRequest("a message needs a role", param=f"{where}.role")
    plain = dict(message)
    if role == "developer" and not needs.developer_role:
        plain["role"] = "system"
    plain["content"] = _content(message.get("content"), f"{where}.content", needs)
    calls = plain.get("tool_calls")
    if calls and not needs.arguments_text:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InvalidRequest("tool_calls must be a list", param=f"{where}.tool_calls")
        plain["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return plain


def _content(content: Any, where: str, needs: TemplateNeeds) -> Any:
    if content is None:
        # Null is usual beside tool calls, yet most templates add content to text or search in it.
        return None if needs.tests_none else "" if needs.tests_strings or not needs.content_parts else []
    if isinstance(content, str):
        wrap = needs.content_parts and not needs.tests_strings
        return [{"type": "text", "text": content}] if wrap else content
    if not isinstance(content, Sequence):
        raise InvalidRequest("content must be a string or a list of parts", param=where)
    texts = [_part_text(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if needs.content_parts:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRequest("a content part must be an object", param=where)
    kind = part.get("type")
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise InvalidRequest(
            f"content part type {kind!r} is not supported", param=f"{where}.type", hint="this model takes text only"
        )
    text = part.get(key)
    if not isinstance(text, str):
        raise InvalidRequest(f"a content part of type {kind!r} needs a string {key!r}", param=f"{where}.{key}")
    return text


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidRequest("a tool call needs a function", param=f"{where}.function")
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        arguments = argument_object(arguments or "")
    if not isinstance(arguments, Mapping):
        raise InvalidRequest("tool call arguments must be a JSON object", param=f"{where}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def argument_object(arguments: str) -> dict[str, Any]:
    """Arguments of a call as an object; what the model wrote wrong, or was stopped within, under ``INVALID_JSON``.

    Empty arguments are an empty object, as functions without parameters are called that way.
    """
    try:
        value = msgspec.json.decode(arguments) if arguments.strip() else {}
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}
