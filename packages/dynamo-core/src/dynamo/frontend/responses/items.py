"""Items, which conversations of the Responses API consist of, and the chat messages that they are.

An item is kept as the API writes it: a message, a function call or the output of one, each with an id. Reasoning of
earlier turns is left out, as chat templates do.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from dynamo.errors import InvalidRequest
from dynamo.frontend.body_bounds import check_messages
from dynamo.preprocessor.messages import argument_object

__all__ = ["Item", "conversation", "messages_of", "read_items"]

Item = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
#: Content part types that are text, and the key of the text.
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def read_items(given: str | list[Item]) -> list[Item]:
    """The items of a request's ``input``.

    Raises:
        InvalidRequest: an item is malformed or of a type that is not served; `param` names it.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not given:
        raise InvalidRequest("'input' must not be empty", param="input")
    check_messages(given, "input")
    return conversation([_read(item, f"input[{index}]") for index, item in enumerate(given)])


def conversation(items: Sequence[Item]) -> list[Item]:
    """Those of `items` that belong to the conversation."""
    return [item for item in items if item["type"] != "reasoning"]


def messages_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The chat messages of a conversation; calls belong to the assistant's message before them."""
    messages: list[dict[str, Any]] = []
    for item in items:
        if item["type"] == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(_chat_call(item))
        elif item["type"] == "function_call_output":
            content = _chat_content(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        else:
            messages.append({"role": item["role"], "content": _chat_content(item["content"])})
    return messages


def _read(item: Item, where: str) -> Item:
    kind = item.get("type", "message" if "role" in item else None)
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise InvalidRequest(f"'{where}.type' is {kind!r}; {', '.join(_READERS)} are served", param=f"{where}.type")
    return reader(item, where)


def _read_message(item: Item, where: str) -> Item:
    role = item.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"'{where}.role' is {role!r}; use one of {', '.join(_ROLES)}", param=f"{where}.role")
    part_type = "output_text" if role == "assistant" else "input_text"
    parts = _read_parts(item.get("content"), f"{where}.content", part_type)
    return {"id": _id(item, "msg"), "type": "message", "status": "completed", "role": role, "content": parts}


def _read_call(item: Item, where: str) -> Item:
    texts = {key: _text(item, key, where) for key in ("call_id", "name", "arguments")}
    return {"id": _id(item, "fc"), "type": "function_call", "status": "completed", **texts}


def _read_output(item: Item, where: str) -> Item:
    output = item.get("output")
    if not isinstance(output, str):
        output = _read_parts(output, f"{where}.output", "input_text")
    call_id = _text(item, "call_id", where)
    return {
        "id": _id(item, "fco"),
        "type": "function_call_output",
        "status": "completed",
        "call_id": call_id,
        "output": output,
    }


def _read_reasoning(item: Item, where: str) -> Item:  # noqa: ARG001
    return {"type": "reasoning"}


_READERS: dict[str, Callable[[Item, str], Item]] = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_output,
    "reasoning": _read_reasoning,
}


def _read_parts(content: Any, where: str, part_type: str) -> list[Item]:
    if isinstance(content, str):
        content = [{"type": part_type, "text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(f"'{where}' must be a string or a list of parts", param=where)
    return [_read_part(part, f"{where}[{index}]", part_type) for index, part in enumerate(content)]


def _read_part(part: Any, where: str, part_type: str) -> Item:
    kind = part.get("type") if isinstance(part, dict) else None
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise InvalidRequest(
            f"'{where}.type' is {kind!r}, which is not supported", param=f"{where}.type", hint="send text only"
        )
    text = _text(part, key, where)
    return {"type": part_type, "text": text, **({"annotations": []} if part_type == "output_text" else {})}


def _text(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{where}.{key}' must be a string", param=f"{where}.{key}")
    return value


def _id(item: Item, prefix: str) -> str:
    given = item.get("id")
    return given if isinstance(given, str) and given else f"{prefix}_{secrets.token_hex(12)}"


def _chat_call(item: Item) -> dict[str, Any]:
    # A call that the model was stopped within must not spoil every later turn.
    arguments = json.dumps(argument_object(item["arguments"]))
    return {"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": arguments}}


def _chat_content(content: str | list[Item]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return str(content[0]["text"])
    return [{"type": "text", "text": part["text"]} for part in content]
