"""Bounds of what a request body may hold, looked at before anything walks through it on the event loop.

The limit of a body's bytes is not enough: eight megabytes are four million token ids or two million lists, and while
Python makes objects of them, or a chat template goes through them, no other request of the process is served.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence, Sized
from typing import Any, TypeVar

import msgspec
import numpy as np

from dynamo.errors import InvalidRequest

__all__ = [
    "LIST_LIMIT",
    "check_count",
    "check_grammar_bytes",
    "check_ids_length",
    "check_messages",
    "decode_json",
    "message_pieces",
    "schema_text",
]

T = TypeVar("T")

#: Most messages of a request, their parts and calls included; also most tools.
LIST_LIMIT = 10_000
#: Of a JSON schema or another grammar that an engine compiles; large ones take up to a second.
_GRAMMAR_BYTES = 256 << 10
#: What is smaller cannot hold enough to matter.
_LARGE_BYTES = 256 << 10
#: Lists, objects and their fields; takes about 0.1 s. Texts with so many brackets have more tokens than models take.
_VALUES_LIMIT = 500_000


def decode_json(body: bytes, kind: type[T]) -> T:
    """`body` as `kind`.

    Raises:
        InvalidRequest: it holds too many values.
        msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError: it is something else.
    """
    if len(body) <= _LARGE_BYTES:
        return msgspec.json.decode(body, type=kind)
    # Each takes a byte at least.
    if len(body) > _VALUES_LIMIT and _values(body) > _VALUES_LIMIT:
        raise InvalidRequest(f"the request body has more than {_VALUES_LIMIT} lists, objects and fields")
    collects = gc.isenabled()
    # JSON has no cycles. Looking for them again and again takes five times as long as decoding does.
    gc.disable()
    try:
        return msgspec.json.decode(body, type=kind)
    finally:
        if collects:
            gc.enable()


def _values(body: bytes) -> int:
    """Brackets and colons behind quotes. By numpy: `bytes.count` takes six times as long, 2 ms a megabyte."""
    characters = np.frombuffer(body, np.uint8)
    names = (characters[1:] == ord(":")) & (characters[:-1] == ord('"'))
    return sum(map(int, map(np.count_nonzero, (characters == ord("["), characters == ord("{"), names))))


def check_count(param: str, values: Sized | None) -> None:
    """Check how many values a list or an object of the request has.

    Raises:
        InvalidRequest: they are more than `LIST_LIMIT`; `param` names the list.
    """
    if values is not None and len(values) > LIST_LIMIT:
        raise _too_many(param, len(values))


def check_messages(messages: Sequence[Mapping[str, Any]], param: str = "messages") -> None:
    """Check how many messages, or items, a conversation has, their parts and calls included.

    Raises:
        InvalidRequest: they are more than `LIST_LIMIT`.
    """
    check_count(param, messages)
    pieces = message_pieces(messages)
    if pieces > LIST_LIMIT:
        raise _too_many(param, pieces)


def message_pieces(messages: Sequence[Mapping[str, Any]]) -> int:
    """Messages, their content parts and their calls."""
    count = len(messages)
    for message in messages:
        for field in ("content", "tool_calls", "output"):
            value = message.get(field)
            if isinstance(value, list):
                count += len(value)
    return count


def check_ids_length(ids: Sized, context_length_tokens: int, what: str, param: str) -> None:
    """Check the length of token ids that a client gives; the ids themselves are not looked at.

    Raises:
        InvalidRequest: they are more than the model's context; `what` is what they are, for the message.
    """
    if len(ids) > context_length_tokens:
        raise InvalidRequest(
            f"this model's context is {context_length_tokens} tokens; {what} has {len(ids)}",
            param=param,
            reason="context_length_exceeded",
        )


def schema_text(schema: Any, param: str) -> str:
    """A JSON schema for an engine.

    Raises:
        InvalidRequest: it is larger than 256 KiB.
    """
    text = msgspec.json.encode(schema).decode()
    check_grammar_bytes(text, param)
    return text


def check_grammar_bytes(text: str, param: str) -> None:
    """Check the size of a grammar for an engine.

    Raises:
        InvalidRequest: it is larger than 256 KiB.
    """
    size = len(text.encode())
    if size > _GRAMMAR_BYTES:
        raise InvalidRequest(f"'{param}' has {size} bytes; at most {_GRAMMAR_BYTES} are allowed", param=param)


def _too_many(param: str, count: int) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' has {count} entries, with what they are made of; at most {LIST_LIMIT} are allowed", param=param
    )
