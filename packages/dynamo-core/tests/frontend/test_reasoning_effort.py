"""``reasoning_effort`` reaches the chat template, under the names that templates read."""

from __future__ import annotations

import pytest

from dynamo.frontend.requests import ChatRequest, take_hints


@pytest.mark.parametrize(
    ("effort", "given", "variables"),
    [
        (None, None, None),
        (None, {"a": 1}, {"a": 1}),
        ("high", None, {"reasoning_effort": "high"}),
        ("high", {"a": 1}, {"reasoning_effort": "high", "a": 1}),
        ("none", None, {"enable_thinking": False}),
        ("none", {"enable_thinking": True}, {"enable_thinking": True}),
        ("high", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
    ],
)
def test_effort_is_a_variable_of_the_template(effort, given, variables):
    request = ChatRequest(model="m", messages=[], reasoning_effort=effort, chat_template_kwargs=given)
    take_hints(request)
    assert request.chat_template_kwargs == variables


async def test_an_effort_that_is_no_text_is_refused(echo):
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": 3}
    response = await echo.client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "reasoning_effort")
