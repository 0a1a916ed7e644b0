"""Turns the generations of one request into its HTTP response, whole or streamed.

An answer follows all choices and ends exactly once: complete, with an error that the client can see, or cancelled
because the client left. `WholeAnswer` and `StreamedAnswer` serve chat and text completions, whose bodies are given by
an `AnswerFormat`; endpoints whose answers are lists of parts use `dynamo.frontend.parts`.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from dynamo.errors import DynamoError, EngineError
from dynamo.frontend.deltas import Delta
from dynamo.frontend.generation import Generation
from dynamo.frontend.metrics import RequestMetrics
from dynamo.protocols.llm import TokenLogprob, Usage
from dynamo.protocols.parsing import ToolCallDelta
from dynamo.runtime.http import Exchange

__all__ = [
    "Answer",
    "AnswerFormat",
    "ChoiceText",
    "StreamedAnswer",
    "WholeAnswer",
    "create_answer",
    "start_events",
    "usage_body",
]

logger = logging.getLogger(__name__)

_json = msgspec.json.Encoder().encode
_SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class ChoiceText(msgspec.Struct):
    """What a choice has gathered when it is not streamed."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    """Complete calls, in order."""
    logprobs: list[TokenLogprob | None] = []
    finish_reason: str | None = None


class AnswerFormat(Protocol):
    """The bodies of one endpoint for one request."""

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        ...

    def opening(self, choice: int) -> bytes:
        """Events before the first text of a choice; may be empty."""
        ...

    def delta(self, choice: int, delta: Delta) -> bytes:
        """The event of new text; empty when there is nothing to say."""
        ...

    def closing(self, choice: int, reason: str) -> bytes:
        """The event with the finish reason."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage over all choices; empty when the client did not ask for it."""
        ...


class Answer(abc.ABC):
    """Implements `dynamo.frontend.generation.GenerationConsumer` for all choices of one request."""

    def __init__(self, exchange: Exchange, metrics: RequestMetrics) -> None:
        self.exchange = exchange
        self._metrics = metrics
        self._generations: Sequence[Generation] = ()
        self._choices_per_prompt = 1
        self._open_choices = 0
        self._usage: dict[int, Usage] = {}
        self._ended = False

    @abc.abstractmethod
    def on_delta(self, choice: int, delta: Delta) -> None:
        """New text of a choice."""

    @abc.abstractmethod
    def finish_choice(self, choice: int, reason: str) -> None:
        """A choice is complete."""

    @abc.abstractmethod
    def complete(self, usage: Usage) -> None:
        """All choices are complete."""

    @abc.abstractmethod
    def fail(self, error: DynamoError) -> None:
        """The request failed."""

    def begin(self, generations: Sequence[Generation], choices_per_prompt: int) -> None:
        """Start all generations; choice ``p * choices_per_prompt + i`` is number i of prompt p."""
        self._generations = generations
        self._choices_per_prompt = choices_per_prompt
        self._open_choices = len(generations)
        self.exchange.on_disconnect(self._client_left)
        self.exchange.on_writable(self._client_writable)
        for generation in generations:
            if self._ended:
                return
            generation.start()

    def on_finish(self, choice: int, reason: str, usage: Usage) -> None:
        """Generation callback."""
        if self._ended:
            return
        try:
            self._finish(choice, reason, usage)
        except Exception:
            # The generation has ended: nobody but this answer can still tell the client.
            logger.exception("the answer of a request for %s could not be completed", self._metrics.endpoint)
            self._end_with(EngineError("internal error; the server's log has the details"))

    def on_failure(self, choice: int, error: DynamoError) -> None:  # noqa: ARG002
        """Generation callback: when one choice fails, so does the request."""
        if not self._ended:
            self._end_with(error)

    def _finish(self, choice: int, reason: str, usage: Usage) -> None:
        self.finish_choice(choice, reason)
        self._usage[choice] = usage
        self._open_choices -= 1
        if not self._open_choices:
            self._ended = True
            self._generations = ()  # they lead back here
            self.complete(self._total_usage())
            self._metrics.end(200)

    def _end_with(self, error: DynamoError) -> None:
        self._ended = True
        self._cancel_generations()
        self.fail(error)
        self._metrics.end(error.http_status, error.code)

    def _client_left(self) -> None:
        if not self._ended:
            self._ended = True
            self._metrics.cancelled()
            self._cancel_generations()
            self._metrics.end(499)

    def _client_writable(self, writable: bool) -> None:
        for generation in self._generations:
            if writable:
                generation.resume()
            else:
                generation.pause()

    def _cancel_generations(self) -> None:
        generations, self._generations = self._generations, ()
        for generation in generations:
            generation.cancel()

    def _total_usage(self) -> Usage:
        firsts = [usage for choice, usage in self._usage.items() if choice % self._choices_per_prompt == 0]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
            completion_tokens=sum(usage.completion_tokens for usage in self._usage.values()),
            cached_tokens=sum(usage.cached_tokens for usage in firsts),
            reasoning_tokens=sum(usage.reasoning_tokens for usage in self._usage.values()),
        )


class WholeAnswer(Answer):
    """One JSON body at the end."""

    def __init__(self, exchange: Exchange, answer_format: AnswerFormat, metrics: RequestMetrics, choices: int) -> None:
        super().__init__(exchange, metrics)
        self.format = answer_format
        self._texts = [ChoiceText() for _ in range(choices)]

    def on_delta(self, choice: int, delta: Delta) -> None:
        """Gather."""
        gathered = self._texts[choice]
        gathered.text += delta.text
        gathered.reasoning += delta.reasoning
        for call in delta.tool_calls:
            if call.index < len(gathered.tool_calls):
                gathered.tool_calls[call.index].arguments += call.arguments
            else:
                gathered.tool_calls.append(call)
        if delta.prompt_logprobs:
            gathered.logprobs += delta.prompt_logprobs
        if delta.logprobs:
            gathered.logprobs += delta.logprobs

    def finish_choice(self, choice: int, reason: str) -> None:
        """Remember the reason."""
        self._texts[choice].finish_reason = reason

    def complete(self, usage: Usage) -> None:
        """Respond."""
        self.exchange.respond_json(200, self.format.whole(self._texts, usage))

    def fail(self, error: DynamoError) -> None:
        """Respond with the error."""
        self.exchange.respond_error(error)


class StreamedAnswer(Answer):
    """Server-sent events; the response begins with the first text, so that earlier errors keep their HTTP status."""

    def __init__(self, exchange: Exchange, answer_format: AnswerFormat, metrics: RequestMetrics) -> None:
        super().__init__(exchange, metrics)
        self.format = answer_format
        self._opened: set[int] = set()
        self._held = b""
        """Events that wait for those which follow at once: each write is a system call, and wakes the client."""

    def on_delta(self, choice: int, delta: Delta) -> None:
        """Send one event; the last one goes with the finish reason."""
        event = self.format.delta(choice, delta)
        if delta.last or choice not in self._opened:
            self._held += self._opening(choice) + event
            if not delta.last:
                self._send_held()
        elif event:
            self.exchange.write(event)

    def finish_choice(self, choice: int, reason: str) -> None:
        """Send the finish reason; that of the last choice goes with the end mark."""
        self._held += self._opening(choice) + self.format.closing(choice, reason)
        if self._open_choices > 1:
            self._send_held()

    def complete(self, usage: Usage) -> None:
        """Send usage, if asked for, and the end mark."""
        start_events(self.exchange)
        self.exchange.end(self._held + self.format.usage(usage) + b"data: [DONE]\n\n")

    def fail(self, error: DynamoError) -> None:
        """Send the error: as a response of its own if nothing was sent yet, else as the last event, without [DONE]."""
        if not self.exchange.responded:
            self.exchange.respond_error(error)
        else:
            self.exchange.end(self._held + b"data: " + _json(error.to_openai()) + b"\n\n")

    def _opening(self, choice: int) -> bytes:
        """What comes before the first event of `choice`."""
        if choice in self._opened:
            return b""
        self._opened.add(choice)
        return self.format.opening(choice)

    def _send_held(self) -> None:
        start_events(self.exchange)
        if self._held:
            events, self._held = self._held, b""
            self.exchange.write(events)


def create_answer(
    exchange: Exchange, answer_format: AnswerFormat, metrics: RequestMetrics, *, stream: bool, choices: int
) -> Answer:
    """The answer that the client asked for."""
    if stream:
        return StreamedAnswer(exchange, answer_format, metrics)
    return WholeAnswer(exchange, answer_format, metrics, choices)


def start_events(exchange: Exchange) -> None:
    """Begin a response of server-sent events, unless it has begun."""
    if not exchange.responded:
        exchange.start(200, "text/event-stream; charset=utf-8", _SSE_HEADERS)


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's ``usage`` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
