"""Bodies of chat completions and completions.

What is the same in every chunk of a stream is encoded once, before the first token; a token then costs the JSON of its
text between two byte strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dynamo.frontend.answers import ChoiceText, usage_body
from dynamo.frontend.deltas import Delta
from dynamo.frontend.logprobs import chat_logprobs, completion_logprobs
from dynamo.frontend.nvext import ExtraBody
from dynamo.preprocessor.tokenizer import Tokenizer
from dynamo.protocols.llm import TokenLogprob, Usage
from dynamo.protocols.parsing import ToolCallDelta

__all__ = ["ChatFormat", "CompletionFormat"]

_json = msgspec.json.Encoder().encode


class _StreamParts:
    """Prepared bytes of one endpoint's chunks."""

    def __init__(self, answer_id: str, kind: str, created: int, model: str, *, include_usage: bool) -> None:
        # Ids need no escapes: `refusals.request_id` makes them.
        self._head = b'data: {"id":"%b","object":"%b","created":%d,"model":%b' % (
            answer_id.encode(),
            kind.encode(),
            created,
            _json(model),
        )
        self._usage = b',"usage":null' if include_usage else b""
        self._include_usage = include_usage
        self._prefixes: dict[int, bytes] = {}
        self.before = b""
        """Events before all others."""
        self.extra: ExtraBody | None = None
        """Makes the ``nvext`` of the answer."""
        self.plain_suffix = b',"logprobs":null,"finish_reason":null}]' + self._usage + b"}\n\n"

    def prefix(self, choice: int) -> bytes:
        """Everything before the text field of a choice."""
        known = self._prefixes.get(choice)
        if known is None:
            known = self._prefixes[choice] = self._head + b',"choices":[{"index":%d,' % choice
        return known

    def suffix(self, logprobs: Any, reason: str | None) -> bytes:
        """Everything after it."""
        return b',"logprobs":' + _json(logprobs) + b',"finish_reason":' + _json(reason) + b"}]" + self._usage + b"}\n\n"

    def closing_suffix(self, reason: str) -> bytes:
        """Everything after the text field of a choice's last chunk."""
        suffix = self.suffix(None, reason)
        return suffix if self.extra is None else suffix[:-3] + b',"nvext":' + _json(self.extra()) + b"}\n\n"

    def extra_fields(self) -> dict[str, Any]:
        """Of an answer that is not streamed."""
        return {} if self.extra is None else {"nvext": self.extra()}

    def take_before(self) -> bytes:
        """What comes before all other events, once."""
        before, self.before = self.before, b""
        return before

    def usage(self, usage: Usage) -> bytes:
        """The usage event, when it was asked for."""
        if not self._include_usage:
            return b""
        return self._head + b',"choices":[],"usage":' + _json(usage_body(usage)) + b"}\n\n"


class ChatFormat:
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(
        self, answer_id: str, model: str, created: int, tokenizer: Tokenizer, *, include_usage: bool, logprobs: bool
    ) -> None:
        self._head = {"id": answer_id, "object": "chat.completion", "created": created, "model": model}
        self._parts = _StreamParts(answer_id, "chat.completion.chunk", created, model, include_usage=include_usage)
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def extend(self, extra: ExtraBody | None, before: bytes) -> None:
        """Add what ``nvext`` asks for; see `dynamo.frontend.nvext`."""
        self._parts.extra, self._parts.before = extra, before

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> dict[str, Any]:
        """See `AnswerFormat`."""
        bodies = [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": self._logprobs_body([item for item in choice.logprobs if item is not None]),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": bodies, "usage": usage_body(usage), **self._parts.extra_fields()}

    def opening(self, choice: int) -> bytes:
        """See `AnswerFormat`."""
        role = b'"delta":{"role":"assistant","content":""}'
        return self._parts.take_before() + self._parts.prefix(choice) + role + self._parts.plain_suffix

    def delta(self, choice: int, delta: Delta) -> bytes:
        """See `AnswerFormat`."""
        if delta.reasoning or delta.tool_calls:
            text = b'"delta":' + _json(_rich_delta(delta))
        elif not delta.text and not delta.logprobs:
            return b""
        else:
            text = b'"delta":{"content":' + _json(delta.text) + b"}"
        if not self._logprobs:
            return self._parts.prefix(choice) + text + self._parts.plain_suffix
        return self._parts.prefix(choice) + text + self._parts.suffix(self._logprobs_body(delta.logprobs or []), None)

    def closing(self, choice: int, reason: str) -> bytes:
        """See `AnswerFormat`."""
        return self._parts.prefix(choice) + b'"delta":{}' + self._parts.closing_suffix(reason)

    def usage(self, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        return self._parts.usage(usage)

    def _logprobs_body(self, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": chat_logprobs(self._tokenizer, logprobs), "refusal": None}


class CompletionFormat:
    """``text_completion``, whole and in chunks."""

    def __init__(
        self,
        answer_id: str,
        model: str,
        created: int,
        tokenizer: Tokenizer,
        *,
        include_usage: bool,
        logprobs: bool,
        echoes: Sequence[str],
    ) -> None:
        self._head = {"id": answer_id, "object": "text_completion", "created": created, "model": model}
        self._parts = _StreamParts(answer_id, "text_completion", created, model, include_usage=include_usage)
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._echoes = echoes
        """Prompt text of each choice, to be repeated before its answer; empty strings otherwise."""
        self._offsets = [0] * len(echoes)

    def extend(self, extra: ExtraBody | None, before: bytes) -> None:
        """Add what ``nvext`` asks for; see `dynamo.frontend.nvext`."""
        self._parts.extra, self._parts.before = extra, before

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> dict[str, Any]:
        """See `AnswerFormat`."""
        bodies = [
            {
                "index": index,
                "text": self._echoes[index] + choice.text,
                "logprobs": completion_logprobs(self._tokenizer, choice.logprobs, 0) if self._logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": bodies, "usage": usage_body(usage), **self._parts.extra_fields()}

    def opening(self, choice: int) -> bytes:
        """See `AnswerFormat`."""
        echo = self._echoes[choice]
        if not echo:
            return self._parts.take_before()
        return (
            self._parts.take_before() + self._parts.prefix(choice) + b'"text":' + _json(echo) + self._parts.plain_suffix
        )

    def delta(self, choice: int, delta: Delta) -> bytes:
        """See `AnswerFormat`."""
        if not delta.text and not delta.logprobs:
            return b""
        head = self._parts.prefix(choice) + b'"text":' + _json(delta.text)
        if not self._logprobs:
            return head + self._parts.plain_suffix
        items = [*(delta.prompt_logprobs or []), *(delta.logprobs or [])]
        body = completion_logprobs(self._tokenizer, items, self._offsets[choice])
        self._offsets[choice] += sum(len(token) for token in body["tokens"])
        return head + self._parts.suffix(body, None)

    def closing(self, choice: int, reason: str) -> bytes:
        """See `AnswerFormat`."""
        return self._parts.prefix(choice) + b'"text":""' + self._parts.closing_suffix(reason)

    def usage(self, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        return self._parts.usage(usage)


def _message(choice: ChoiceText) -> dict[str, Any]:
    """The assistant's message; content is null when there are only calls."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return message


def _rich_delta(delta: Delta) -> dict[str, Any]:
    """A delta with reasoning or tool calls; only the first delta of a call names it."""
    body: dict[str, Any] = {}
    if delta.text:
        body["content"] = delta.text
    if delta.reasoning:
        body["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        body["tool_calls"] = [_call_delta(call) for call in delta.tool_calls]
    return body


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
