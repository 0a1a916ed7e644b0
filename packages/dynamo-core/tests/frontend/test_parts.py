"""Answers as parts: where parts begin and end, arguments that are no JSON."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import EngineError
from dynamo.frontend.deltas import Delta
from dynamo.frontend.metrics import FrontendMetrics
from dynamo.frontend.parts import PartAnswer
from dynamo.protocols.llm import Usage
from dynamo.protocols.parsing import ToolCallDelta
from dynamo.runtime.http.exchange import Exchange
from dynamo.runtime.tracing import create_tracing


class Connection:
    """Keeps what an exchange writes."""

    peer = "test"

    def __init__(self):
        self.written = b""
        self.finished = 0

    def write(self, data):
        self.written += data

    def finish(self, exchange):
        self.finished += 1


class Spelled:
    """A `PartFormat` that spells what it is asked for."""

    def opening(self):
        return b"<"

    def part_opening(self, part):
        return b"[%d:%b:" % (part.index, (part.name or part.kind).encode())

    def part_delta(self, part, text):
        return b"(" + text.encode() + b")"

    def part_closing(self, part):
        return b"!]" if part.cut else b"]"

    def ending(self, outcome):
        return f"{outcome.reason} {outcome.usage.completion_tokens}>".encode()

    def failure(self, error):
        return b"failed>"

    def whole(self, outcome):
        parts = [[part.kind, part.text] for part in outcome.parts]
        return {"parts": parts, "reason": outcome.reason}


class Ended:
    """Stands for a generation that is over."""

    choice = 0
    stop_string = None

    def start(self):
        pass

    def cancel(self):
        pass


@pytest.fixture
def make_answer():
    def make(*, stream, before_end=None):
        connection = Connection()
        exchange = Exchange(connection)
        families = FrontendMetrics(CollectorRegistry())
        metrics = families.begin("m", "test", "id", create_tracing("test", {}).span("test", {}, {}), stream=stream)
        answer = PartAnswer(exchange, Spelled(), metrics, stream=stream, before_end=before_end)
        answer.begin([Ended()], 1)
        return answer, connection

    return make


def body(connection):
    """The chunks of a response, joined."""
    _, _, chunks = connection.written.partition(b"\r\n\r\n")
    return b"".join(chunks.split(b"\r\n")[1::2]).decode()


DELTAS = [
    Delta("", [1]),
    Delta("", [2, 3], reasoning="ab"),
    Delta("cccc", [4, 5, 6], reasoning="dd"),
    Delta("", [7], tool_calls=[ToolCallDelta(0, "id0", "f", "{"), ToolCallDelta(0, arguments="}")]),
    Delta("", [8], tool_calls=[ToolCallDelta(1, "id1", "g")]),
    Delta("e", [9]),
]


def test_parts_are_streamed_as_the_model_turns(make_answer):
    answer, connection = make_answer(stream=True)
    for delta in DELTAS:
        answer.on_delta(0, delta)
    answer.on_finish(0, "length", Usage(1, 9))
    assert body(connection) == "<[0:reasoning:(ab)(dd)][1:text:(cccc)][2:f:({)(})][3:g:][4:text:(e)!]length 9>"
    assert connection.finished == 1


def test_the_same_parts_are_gathered(make_answer):
    answer, connection = make_answer(stream=False)
    for delta in DELTAS:
        answer.on_delta(0, delta)
    assert connection.written == b""
    answer.on_finish(0, "stop", Usage(1, 9))
    assert connection.written.endswith(
        b'{"parts":[["reasoning","abdd"],["text","cccc"],["call","{}"],["call",""],["text","e"]],"reason":"stop"}'
    )


def test_an_answer_without_text_is_opened_and_ended(make_answer):
    answer, connection = make_answer(stream=True)
    answer.on_finish(0, "stop", Usage(1, 0))
    assert body(connection) == "<stop 0>"


def test_the_end_waits_for_what_comes_before_it(make_answer):
    waiting = []
    answer, connection = make_answer(stream=True, before_end=lambda outcome, send: waiting.append((outcome, send)))
    answer.on_delta(0, Delta("a", [1]))
    answer.on_finish(0, "stop", Usage(1, 1))
    ((outcome, send),) = waiting
    assert [part.text for part in outcome.parts] == ["a"]
    assert connection.finished == 0
    send()
    assert body(connection) == "<[0:text:(a)]stop 1>"
    assert connection.finished == 1


def test_failures_before_and_in_the_stream(make_answer):
    answer, connection = make_answer(stream=True)
    answer.on_failure(0, EngineError("broken"))
    assert connection.written.startswith(b"HTTP/1.1 500 ")
    answer, connection = make_answer(stream=True)
    answer.on_delta(0, Delta("a", [1]))
    answer.on_failure(0, EngineError("broken"))
    answer.on_finish(0, "stop", Usage(1, 1))
    assert body(connection) == "<[0:text:(a)failed>"
    assert connection.finished == 1
