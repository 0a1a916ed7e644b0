"""Answers that are a list of parts in the order the model made them: reasoning, text, calls.

Responses calls the parts output items, Messages calls them content blocks; both have one choice, and both want the same
list whether they stream or not. `PartAnswer` finds the parts in what a generation gives, a `PartFormat` of the endpoint
spells them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from dynamo.errors import DynamoError
from dynamo.frontend.answers import Answer, start_events
from dynamo.frontend.deltas import Delta
from dynamo.frontend.metrics import RequestMetrics
from dynamo.protocols.llm import TokenLogprob, Usage
from dynamo.protocols.parsing import ToolCallDelta
from dynamo.runtime.http import Exchange

__all__ = ["BeforeEnd", "Outcome", "Part", "PartAnswer", "PartFormat", "PartKind"]

PartKind: TypeAlias = Literal["reasoning", "text", "call"]


class Part(msgspec.Struct):
    """One part of an answer. A new one begins when the model turns from one kind to another, and with every call."""

    kind: PartKind
    index: int
    """Place in the answer, from 0."""
    call_id: str = ""
    name: str = ""
    """The function of a call."""
    pieces: list[str] = []
    logprobs: list[TokenLogprob] = []
    """Of a text, when they were asked for: one per token."""
    new_logprobs: list[TokenLogprob] = []
    """Those of the text that the format is given now."""
    cut: bool = False
    """Whether the token limit ended the answer within it."""
    head: bytes = b""
    """What its format repeats in each of its events, prepared when it began."""

    @property
    def text(self) -> str:
        """All of it; of a call the arguments."""
        return "".join(self.pieces)


class Outcome(msgspec.Struct):
    """How an answer ended."""

    parts: Sequence[Part]
    reason: str
    """stop, length or tool_calls."""
    stop_string: str | None
    """The client's stop string that ended it, if one did."""
    usage: Usage


#: Gets the outcome, and what sends the end of the answer: to be called once, now or later.
BeforeEnd: TypeAlias = Callable[[Outcome, Callable[[], None]], None]


class PartFormat(Protocol):
    """The bodies of one endpoint for one request. Events are bytes of a stream; they are asked for in stream order."""

    def opening(self) -> bytes:
        """Events before the first part."""
        ...

    def part_opening(self, part: Part) -> bytes:
        """Events of a new part, which has no text yet."""
        ...

    def part_delta(self, part: Part, text: str) -> bytes:
        """The event of new text of a part."""
        ...

    def part_closing(self, part: Part) -> bytes:
        """Events of a complete part."""
        ...

    def ending(self, outcome: Outcome) -> bytes:
        """The last events."""
        ...

    def failure(self, error: DynamoError) -> bytes:
        """The last events of a stream that fails after its opening."""
        ...

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        ...


class PartAnswer(Answer):
    """One choice as parts, streamed or whole."""

    def __init__(
        self,
        exchange: Exchange,
        part_format: PartFormat,
        metrics: RequestMetrics,
        *,
        stream: bool,
        before_end: BeforeEnd | None = None,
        token_text: Callable[[int], str] | None = None,
    ) -> None:
        """`token_text` is that of the model, where logprobs may be asked for."""
        super().__init__(exchange, metrics)
        self._format = part_format
        self._streams = stream
        self._before_end = before_end
        self._parts: list[Part] = []
        self._open: Part | None = None
        self._opened = False
        self._events: list[bytes] = []
        self._reason = ""
        self._stop_string: str | None = None
        self._token_text = token_text
        self._held_logprobs: list[TokenLogprob] = []
        """Of tokens whose text is not out yet."""

    def on_delta(self, choice: int, delta: Delta) -> None:  # noqa: ARG002
        """Sort what has come into parts, and stream it."""
        if delta.reasoning:
            self._append("reasoning", delta.reasoning)
        if delta.logprobs:
            self._held_logprobs += delta.logprobs[delta.reasoning_tokens :]
        if delta.text:
            self._append("text", delta.text)
        elif delta.reasoning or delta.tool_calls:
            self._held_logprobs = []
        for call in delta.tool_calls:
            self._append_call(call)
        if self._streams and (self._events or not self._opened):
            events = self._take_events()
            start_events(self.exchange)
            self.exchange.write(events)

    def finish_choice(self, choice: int, reason: str) -> None:
        """Remember how it ended."""
        self._reason = reason
        if self._open is not None:
            self._open.cut = reason == "length"
        self._stop_string = self._generations[choice].stop_string
        self._close()

    def complete(self, usage: Usage) -> None:
        """Send the end, when what comes before it is done."""
        outcome = Outcome(self._parts, self._reason, self._stop_string, usage)
        if self._before_end is None:
            self._send(outcome)
        else:
            self._before_end(outcome, partial(self._send, outcome))

    def fail(self, error: DynamoError) -> None:
        """Send the error: as a response of its own if nothing was sent yet, else as the last event."""
        if not self.exchange.responded:
            self.exchange.respond_error(error)
        else:
            self.exchange.end(self._format.failure(error))

    def _send(self, outcome: Outcome) -> None:
        if not self._streams:
            self.exchange.respond_json(200, self._format.whole(outcome))
            return
        events = self._take_events() + self._format.ending(outcome)
        start_events(self.exchange)
        self.exchange.end(events)

    def _append(self, kind: PartKind, text: str) -> None:
        part = self._open
        if part is None or part.kind != kind:
            part = self._begin(Part(kind, len(self._parts)))
        self._add(part, text)

    def _append_call(self, call: ToolCallDelta) -> None:
        # The parsers give calls one after another, so arguments always belong to the call that is open.
        part = self._open
        if part is None or call.name is not None:
            part = self._begin(Part("call", len(self._parts), call.id or "", call.name or ""))
        if call.arguments:
            self._add(part, call.arguments)

    def _begin(self, part: Part) -> Part:
        self._close()
        self._open = part
        self._parts.append(part)
        if self._streams:
            if not self._opened:
                self._events.append(self._opening())
            self._events.append(self._format.part_opening(part))
        return part

    def _add(self, part: Part, text: str) -> None:
        if part.kind == "text" and self._held_logprobs:
            held, self._held_logprobs = self._held_logprobs, []
            # What begins a text may come with the mark that ended the reasoning before it.
            part.new_logprobs = held if part.pieces or self._token_text is None else _tail(held, text, self._token_text)
            part.logprobs += part.new_logprobs
        else:
            part.new_logprobs = []
        part.pieces.append(text)
        if self._streams:
            self._events.append(self._format.part_delta(part, text))

    def _close(self) -> None:
        part, self._open = self._open, None
        if part is not None and self._streams:
            self._events.append(self._format.part_closing(part))

    def _opening(self) -> bytes:
        self._opened = True
        return self._format.opening()

    def _take_events(self) -> bytes:
        opening = b"" if self._opened else self._opening()
        events, self._events = self._events, []
        return opening + b"".join(events)


def _tail(logprobs: list[TokenLogprob], text: str, token_text: Callable[[int], str]) -> list[TokenLogprob]:
    """Those of the last tokens, as many as `text` is made of."""
    missing, start = len(text), len(logprobs)
    while missing > 0 and start > 0:
        start -= 1
        missing -= len(token_text(logprobs[start].token_id))
    return logprobs[start:]
