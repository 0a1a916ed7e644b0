"""Which long chats are rendered on the event loop: those whose template has been quick with long texts."""

from __future__ import annotations

import math
import time

import pytest

from dynamo.frontend.render_time import RenderTime, only_texts


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_nothing_is_expected_to_be_quick_before_it_was():
    assert math.isinf(RenderTime().expected_seconds(1))


def test_the_time_grows_with_the_body_and_a_slow_one_counts_at_once():
    times = RenderTime()
    assert times.measured(lambda: "text", 1_000_000) == "text"
    quick = times.expected_seconds(1_000_000)
    assert 0 <= quick == pytest.approx(2 * times.expected_seconds(500_000))
    times.measured(lambda: spin(0.02), 1_000_000)
    slow = times.expected_seconds(1_000_000)
    assert slow >= 0.02
    times.measured(lambda: "text", 1_000_000)
    assert 0.5 * slow < times.expected_seconds(1_000_000) < slow


def test_a_template_that_fails_is_measured_too():
    def fail():
        spin(0.01)
        raise ValueError("no")

    times = RenderTime()
    with pytest.raises(ValueError, match="no"):
        times.measured(fail, 1000)
    assert times.expected_seconds(1000) >= 0.01


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ({"role": "user", "content": "text", "name": None}, True),
        ({"role": "user", "content": [{"type": "text", "text": "text"}]}, False),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, False),
        ({"role": "user", "content": 3}, False),
    ],
)
def test_messages_of_texts_are_told_from_those_that_nest(message, plain):
    assert only_texts([{"role": "system", "content": "Be brief."}, message]) is plain


async def test_a_long_chat_is_answered_alike_on_the_loop_and_beside_it(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--max-model-len", "100000"]})
    await deployment.serves("echo")
    text = "a small fox " * 12_000
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], "max_tokens": 20}
    # The first one teaches how quick the template is.
    answers = [(await deployment.client.post("/v1/chat/completions", json=body)).json() for _ in range(3)]
    assert len({answer["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert answers[0]["usage"]["prompt_tokens"] > 12_000
