"""The message object and its stream of events.

What the deltas of a content block share is encoded when it begins: a token costs the JSON of its text between two byte
strings.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo.errors import DynamoError
from dynamo.frontend.messages.errors import render_error
from dynamo.frontend.parts import Outcome, Part
from dynamo.preprocessor.messages import argument_object
from dynamo.protocols.llm import Usage

__all__ = ["MessageFormat"]

_json = msgspec.json.Encoder().encode

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_DELTAS = {
    "reasoning": b'{"type":"thinking_delta","thinking":',
    "text": b'{"type":"text_delta","text":',
    "call": b'{"type":"input_json_delta","partial_json":',
}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageFormat:
    """Implements `dynamo.frontend.parts.PartFormat` for one message."""

    def __init__(self, message_id: str, model: str, prompt_tokens: int) -> None:
        self._message: dict[str, Any] = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._prompt_tokens = prompt_tokens

    def opening(self) -> bytes:
        """See `PartFormat`. How much of the prompt was cached is only known at the end, which says it."""
        message = {**self._message, "usage": _usage(Usage(self._prompt_tokens, 0))}
        return _event(b"message_start", b'"message":' + _json(message)) + _PING

    def part_opening(self, part: Part) -> bytes:
        """See `PartFormat`."""
        index = b'"index":%d,' % part.index
        part.head = b'event: content_block_delta\ndata: {"type":"content_block_delta",' + index
        part.head += b'"delta":' + _DELTAS[part.kind]
        return _event(b"content_block_start", index + b'"content_block":' + _json(_block(part)))

    def part_delta(self, part: Part, text: str) -> bytes:
        """See `PartFormat`."""
        return part.head + _json(text) + b"}}\n\n"

    def part_closing(self, part: Part) -> bytes:
        """See `PartFormat`."""
        return _event(b"content_block_stop", b'"index":%d' % part.index)

    def ending(self, outcome: Outcome) -> bytes:
        """See `PartFormat`."""
        delta = b'"delta":' + _json(_stop(outcome))
        return _event(b"message_delta", delta + b',"usage":' + _json(_usage(outcome.usage))) + _STOP

    def failure(self, error: DynamoError) -> bytes:
        """See `PartFormat`."""
        _, body = render_error(error)
        return b"event: error\ndata: " + _json(body) + b"\n\n"

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `PartFormat`."""
        content = [_block(part) for part in outcome.parts]
        return {**self._message, "content": content, **_stop(outcome), "usage": _usage(outcome.usage)}


def _event(kind: bytes, fields: bytes) -> bytes:
    return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (kind, kind, fields)


def _block(part: Part) -> dict[str, Any]:
    if part.kind == "call":
        return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": argument_object(part.text)}
    if part.kind == "reasoning":
        # Signatures prove that thinking comes from Anthropic's models; here clients may send it back as they like.
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    return {"type": "text", "text": part.text, "citations": None}


def _stop(outcome: Outcome) -> dict[str, Any]:
    if outcome.reason == "stop" and outcome.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": outcome.stop_string}
    return {"stop_reason": _STOP_REASONS[outcome.reason], "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's ``usage``, whose input tokens are those that were not read from the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
