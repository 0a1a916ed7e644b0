"""The response object and its stream of events.

The fields that all events of an item share are encoded when it begins: a token costs the JSON of its text, a number,
and joining bytes.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec

from dynamo.errors import DynamoError
from dynamo.frontend.logprobs import chat_logprobs
from dynamo.frontend.parts import Outcome, Part
from dynamo.frontend.responses.request import ResponseRequest, render_error
from dynamo.preprocessor.tokenizer import Tokenizer
from dynamo.protocols.llm import TokenLogprob, Usage

__all__ = ["ResponseFormat"]

_json = msgspec.json.Encoder().encode

_ID_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
_DELTAS = {
    "reasoning": b"response.reasoning_text.delta",
    "text": b"response.output_text.delta",
    "call": b"response.function_call_arguments.delta",
}
_DONES = {
    "reasoning": b"response.reasoning_text.done",
    "text": b"response.output_text.done",
    "call": b"response.function_call_arguments.done",
}


class ResponseFormat:
    """Implements `dynamo.frontend.parts.PartFormat` for one response."""

    def __init__(self, response_id: str, request: ResponseRequest, tokenizer: Tokenizer, *, stored: bool) -> None:
        self._tokenizer = tokenizer
        self._head = _head(response_id, request, stored=stored)
        self._item_suffix = secrets.token_hex(12)
        self._sequence_number = 0

    def opening(self) -> bytes:
        """See `PartFormat`."""
        body = b'"response":' + _json(self._response("in_progress"))
        return self._event(b"response.created", body) + self._event(b"response.in_progress", body)

    def part_opening(self, part: Part) -> bytes:
        """See `PartFormat`."""
        index = b'"output_index":%d,' % part.index
        part.head = b'"item_id":%b,' % _json(self._item_id(part)) + index
        item = {**self._item(part, "in_progress"), **({} if part.kind == "call" else {"content": []})}
        added = self._event(b"response.output_item.added", index + b'"item":' + _json(item))
        if part.kind == "call":
            return added
        part.head += b'"content_index":0,'
        return added + self._event(b"response.content_part.added", part.head + b'"part":' + _json(self._content(part)))

    def part_delta(self, part: Part, text: str) -> bytes:
        """See `PartFormat`."""
        logprobs = self._logprobs(part, part.new_logprobs)
        return self._event(_DELTAS[part.kind], part.head + b'"delta":' + _json(text) + logprobs)

    def part_closing(self, part: Part) -> bytes:
        """See `PartFormat`."""
        if part.kind == "call":
            done = part.head + b'"name":%b,"arguments":%b' % (_json(part.name), _json(part.text))
        else:
            done = part.head + b'"text":' + _json(part.text) + self._logprobs(part, part.logprobs)
        events = self._event(_DONES[part.kind], done)
        if part.kind != "call":
            events += self._event(b"response.content_part.done", part.head + b'"part":' + _json(self._content(part)))
        item = b'"output_index":%d,"item":' % part.index + _json(self._item(part, _status(part)))
        return events + self._event(b"response.output_item.done", item)

    def ending(self, outcome: Outcome) -> bytes:
        """See `PartFormat`."""
        body = self.whole(outcome)
        return self._event(b"response." + body["status"].encode(), b'"response":' + _json(body))

    def failure(self, error: DynamoError) -> bytes:
        """See `PartFormat`."""
        _, body = render_error(error)
        refusal = body["error"]
        event = {key: refusal[key] for key in ("code", "message", "param")}
        code = "server_error" if error.http_status >= 500 else "invalid_prompt"
        failed = {**self._response("failed"), "error": {"code": code, "message": refusal["message"]}}
        events = self._event(b"error", _json(event)[1:-1])
        return events + self._event(b"response.failed", b'"response":' + _json(failed))

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `PartFormat`."""
        incomplete = outcome.reason == "length"
        return {
            **self._response("incomplete" if incomplete else "completed"),
            "completed_at": None if incomplete else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
            "output": [self._item(part, _status(part)) for part in outcome.parts],
            "usage": _usage(outcome.usage),
        }

    def _event(self, kind: bytes, fields: bytes) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (kind, kind, number, fields)

    def _response(self, status: str) -> dict[str, Any]:
        return {**self._head, "status": status}

    def _logprobs(self, part: Part, logprobs: list[TokenLogprob]) -> bytes:
        """The field of an event, which only texts have; empty where they were not asked for."""
        if part.kind != "text":
            return b""
        return b',"logprobs":' + _json(chat_logprobs(self._tokenizer, logprobs)) if logprobs else b',"logprobs":[]'

    def _content(self, part: Part) -> dict[str, Any]:
        if part.kind == "reasoning":
            return {"type": "reasoning_text", "text": part.text}
        logprobs = chat_logprobs(self._tokenizer, part.logprobs)
        return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": logprobs}

    def _item_id(self, part: Part) -> str:
        return f"{_ID_PREFIXES[part.kind]}_{self._item_suffix}{part.index}"

    def _item(self, part: Part, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(part), "status": status}
        if part.kind == "call":
            call = {"call_id": part.call_id, "name": part.name, "arguments": part.text}
            return {**item, "type": "function_call", **call}
        if part.kind == "reasoning":
            return {**item, "type": "reasoning", "summary": [], "content": [self._content(part)]}
        return {**item, "type": "message", "role": "assistant", "content": [self._content(part)]}


def _head(response_id: str, request: ResponseRequest, *, stored: bool) -> dict[str, Any]:
    """What does not change while the response is made; most of it repeats the request."""
    text = request.text or {}
    tools = [{"parameters": None, "strict": None, **tool} for tool in request.tools or []]
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": (request.reasoning or {}).get("effort"), "summary": None},
        "store": stored,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": request.tool_choice or "auto",
        "tools": tools,
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _status(part: Part) -> str:
    return "incomplete" if part.cut else "completed"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
