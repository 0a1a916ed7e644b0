"""Messages made of content blocks, and the chat messages that they are.

A result of a tool is a block in a user's message there and a message of its own here; the use of one is a block of the
assistant's there and beside the text here. Thinking of earlier turns is left out, as chat templates do.
"""

from __future__ import annotations

import json
from typing import Any

from dynamo.errors import InvalidRequest

__all__ = ["chat_messages"]

_ROLES = ("user", "assistant", "system")
_THINKING = ("thinking", "redacted_thinking")


def chat_messages(system: str | list[dict[str, Any]] | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat messages of a conversation.

    Raises:
        InvalidRequest: a message or block is malformed, or of a type that is not served; `param` names it.
    """
    if not messages:
        raise InvalidRequest("'messages' must have at least one message", param="messages")
    chat: list[dict[str, Any]] = []
    if system:
        chat.append({"role": "system", "content": _text_content(system, "system")})
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role")
        if role not in _ROLES:
            raise InvalidRequest(f"'{where}.role' is {role!r}; use one of {', '.join(_ROLES)}", param=f"{where}.role")
        content = message.get("content")
        if role == "assistant" and isinstance(content, list):
            chat.append(_assistant(content, f"{where}.content"))
        elif role == "user" and isinstance(content, list):
            chat += _user(content, f"{where}.content")
        else:
            chat.append({"role": role, "content": _text_content(content, f"{where}.content")})
    return chat


def _assistant(blocks: list[Any], where: str) -> dict[str, Any]:
    texts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        kind = _kind(block, f"{where}[{index}]")
        if kind == "tool_use":
            calls.append(_chat_call(block, f"{where}[{index}]"))
        elif kind not in _THINKING:
            texts.append(_text_block(block, f"{where}[{index}]"))
    message: dict[str, Any] = {"role": "assistant", "content": _joined(texts) if texts else None}
    if calls:
        message["tool_calls"] = calls
    elif not texts:
        # Only thinking, which is left out.
        message["content"] = ""
    return message


def _user(blocks: list[Any], where: str) -> list[dict[str, Any]]:
    """A tool message for every result, a user's for the text between them."""
    messages: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        if _kind(block, f"{where}[{index}]") != "tool_result":
            texts.append(_text_block(block, f"{where}[{index}]"))
            continue
        if texts:
            messages.append({"role": "user", "content": _joined(texts)})
            texts = []
        messages.append(_tool_result(block, f"{where}[{index}]"))
    if texts or not messages:
        messages.append({"role": "user", "content": _joined(texts)})
    return messages


def _tool_result(block: dict[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content")
    text = "" if content is None else _text_content(content, f"{where}.content")
    return {"role": "tool", "tool_call_id": _field(block, "tool_use_id", where), "content": text}


def _chat_call(block: dict[str, Any], where: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"'{where}.input' must be an object", param=f"{where}.input")
    function = {"name": _field(block, "name", where), "arguments": json.dumps(arguments)}
    return {"id": _field(block, "id", where), "type": "function", "function": function}


def _text_content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """A string, or blocks of text only."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"'{where}' must be a string or a list of content blocks", param=where)
    return _joined([_text_block(block, f"{where}[{index}]") for index, block in enumerate(content)])


def _joined(texts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if len(texts) > 1:
        return texts
    return str(texts[0]["text"]) if texts else ""


def _text_block(block: Any, where: str) -> dict[str, Any]:
    kind = _kind(block, where)
    if kind != "text":
        raise InvalidRequest(
            f"'{where}.type' is {kind!r}, which is not supported here", param=f"{where}.type", hint="send text only"
        )
    return {"type": "text", "text": _field(block, "text", where)}


def _kind(block: Any, where: str) -> Any:
    if not isinstance(block, dict):
        raise InvalidRequest(f"'{where}' must be an object", param=where)
    return block.get("type")


def _field(block: dict[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{where}.{key}' must be a string", param=f"{where}.{key}")
    return value
