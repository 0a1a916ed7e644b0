"""Malformed requests: each with its status, error type and param; none gives a 500, none disturbs the next."""

from __future__ import annotations

import json

import pytest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return CHAT, {"model": "echo", "messages": HI, **fields}


def completion(**fields):
    return COMPLETIONS, {"model": "echo", "prompt": "hi", **fields}


# What each row holds: the request, then status, code and param of the refusal.
TABLE = {
    "unknown model": (chat(model="nope"), 404, "model_not_found", "model"),
    "no model": ((CHAT, {"messages": HI}), 400, "invalid_request", "model"),
    "model is a number": (chat(model=5), 400, "invalid_request", "model"),
    "no messages": ((CHAT, {"model": "echo"}), 400, "invalid_request", "messages"),
    "empty messages": (chat(messages=[]), 400, "invalid_request", "messages"),
    "messages is a string": (chat(messages="hi"), 400, "invalid_request", "messages"),
    "message is a string": (chat(messages=["hi"]), 400, "invalid_request", "messages[0]"),
    "unknown role": (
        chat(messages=[{"role": "wizard", "content": "x"}]),
        400,
        "invalid_request",
        "messages[0].role",
    ),
    "no role": (chat(messages=[{"content": "x"}]), 400, "invalid_request", "messages[0].role"),
    "no content": (chat(messages=[{"role": "user"}]), 400, "invalid_request", "messages[0].content"),
    "content is a number": (
        chat(messages=[*HI, {"role": "user", "content": 3}]),
        400,
        "invalid_request",
        "messages[1].content",
    ),
    "unknown content part": (
        chat(messages=[{"role": "user", "content": [{"type": "hologram"}]}]),
        400,
        "invalid_request",
        "messages[0].content[0].type",
    ),
    "negative max_tokens": (chat(max_tokens=-1), 400, "invalid_request", "max_tokens"),
    "zero max_tokens": (chat(max_tokens=0), 400, "invalid_request", "max_tokens"),
    "max_tokens is a string": (chat(max_tokens="ten"), 400, "invalid_request", "max_tokens"),
    "max_tokens is a fraction": (chat(max_tokens=1.5), 400, "invalid_request", "max_tokens"),
    "negative max_completion_tokens": (
        chat(max_completion_tokens=-3),
        400,
        "invalid_request",
        "max_completion_tokens",
    ),
    "negative min_tokens": (chat(min_tokens=-1), 400, "invalid_request", "min_tokens"),
    "temperature too high": (chat(temperature=2.1), 400, "invalid_request", "temperature"),
    "temperature negative": (chat(temperature=-0.1), 400, "invalid_request", "temperature"),
    "temperature is a string": (chat(temperature="hot"), 400, "invalid_request", "temperature"),
    "top_p negative": (chat(top_p=-0.1), 400, "invalid_request", "top_p"),
    "top_p above one": (chat(top_p=1.1), 400, "invalid_request", "top_p"),
    "top_k below minus one": (chat(top_k=-2), 400, "invalid_request", "top_k"),
    "min_p above one": (chat(min_p=1.5), 400, "invalid_request", "min_p"),
    "frequency_penalty": (chat(frequency_penalty=2.5), 400, "invalid_request", "frequency_penalty"),
    "presence_penalty": (chat(presence_penalty=-2.5), 400, "invalid_request", "presence_penalty"),
    "repetition_penalty": (chat(repetition_penalty=0), 400, "invalid_request", "repetition_penalty"),
    "n zero": (chat(n=0), 400, "invalid_request", "n"),
    "n too large": (chat(n=1000), 400, "invalid_request", "n"),
    "seed too large": (chat(seed=2**64), 400, "invalid_request", "seed"),
    "1,000 stop strings": (chat(stop=["x"] * 1000), 400, "invalid_request", "stop"),
    "empty stop string": (chat(stop=["a", ""]), 400, "invalid_request", "stop[1]"),
    "long stop string": (chat(stop="x" * 5000), 400, "invalid_request", "stop[0]"),
    "stop is a number": (chat(stop=7), 400, "invalid_request", "stop"),
    "logit_bias key": (chat(logit_bias={"abc": 1}), 400, "invalid_request", "logit_bias"),
    "logit_bias value": (chat(logit_bias={"5": 101}), 400, "invalid_request", "logit_bias.5"),
    "logit_bias key beyond any id": (chat(logit_bias={str(2**40): 1}), 400, "invalid_request", "logit_bias"),
    "logit_bias key of 5,000 digits": (chat(logit_bias={"9" * 5000: 1}), 400, "invalid_request", "logit_bias"),
    "priority beyond 32 bits": (chat(priority=2**70), 400, "invalid_request", "priority"),
    "stop token beyond 32 bits": (chat(stop_token_ids=[2**70]), 400, "invalid_request", "stop_token_ids[0]"),
    "top_k beyond 32 bits": (chat(top_k=2**70), 400, "invalid_request", "top_k"),
    "top_logprobs without logprobs": (chat(top_logprobs=3), 400, "invalid_request", "top_logprobs"),
    "too many top_logprobs": (chat(logprobs=True, top_logprobs=21), 400, "invalid_request", "top_logprobs"),
    "stream is a string": (chat(stream="yes"), 400, "invalid_request", "stream"),
    "stream_options without stream": (
        chat(stream_options={"include_usage": True}),
        400,
        "invalid_request",
        "stream_options",
    ),
    "response_format type": (
        chat(response_format={"type": "xml"}),
        400,
        "invalid_request",
        "response_format.type",
    ),
    "response_format without schema": (
        chat(response_format={"type": "json_schema"}),
        400,
        "invalid_request",
        "response_format.json_schema.schema",
    ),
    "response_format of an engine without it": (
        chat(response_format={"type": "json_object"}),
        400,
        "invalid_request",
        "response_format",
    ),
    "grammar of an engine without it": (
        chat(guided_regex="a+"),
        400,
        "invalid_request",
        "guided_regex",
    ),
    "grammar of an engine without it, in a completion": (
        completion(structured_outputs={"choice": ["a"]}),
        400,
        "invalid_request",
        "structured_outputs.choice",
    ),
    "tool name with spaces": (
        chat(tools=[{"type": "function", "function": {"name": "a b c"}}]),
        400,
        "invalid_request",
        "tools[0].function.name",
    ),
    "long tool name": (
        chat(tools=[{"type": "function", "function": {"name": "a" * 129}}]),
        400,
        "invalid_request",
        "tools[0].function.name",
    ),
    "response tool name": (
        ("/v1/responses", {"model": "echo", "input": "hi", "tools": [{"type": "function", "name": "a\nb"}]}),
        400,
        "invalid_request",
        "tools[0].name",
    ),
    "functions, which tools were before": (chat(functions=[{"name": "f"}]), 400, "invalid_request", "functions"),
    "null for what is required": (chat(model=None), 400, "invalid_request", "model"),
    "null in a list": (chat(stop_token_ids=[None]), 400, "invalid_request", "stop_token_ids[0]"),
    "tools is a string": (chat(tools="hammer"), 400, "invalid_request", "tools"),
    "template variable that is a field": (
        chat(chat_template_kwargs={"messages": []}),
        400,
        "invalid_request",
        "chat_template_kwargs",
    ),
    "prompt too long": (
        chat(messages=[{"role": "user", "content": "word " * 9000}]),
        400,
        "context_length_exceeded",
        None,
    ),
    "no prompt": ((COMPLETIONS, {"model": "echo"}), 400, "invalid_request", "prompt"),
    "empty prompt list": (completion(prompt=[]), 400, "invalid_request", "prompt"),
    "empty prompt": (completion(prompt=""), 400, "invalid_request", "prompt"),
    "mixed prompt": (completion(prompt=["a", 1]), 400, "invalid_request", "prompt"),
    "prompt token out of range": (completion(prompt=[1, 10**6]), 400, "invalid_request", "prompt"),
    "negative prompt token": (completion(prompt=[-1]), 400, "invalid_request", "prompt"),
    "empty token list": (completion(prompt=[[1], []]), 400, "invalid_request", "prompt"),
    "too many prompts": (completion(prompt=["a"] * 129), 400, "invalid_request", "prompt"),
    "too many choices of prompts": (completion(prompt=["a"] * 43, n=3), 400, "invalid_request", "n"),
    "suffix": (completion(suffix="end"), 400, "invalid_request", "suffix"),
    "best_of": (completion(best_of=4), 400, "invalid_request", "best_of"),
    "logprobs too large": (completion(logprobs=50), 400, "invalid_request", "logprobs"),
    "logprobs boolean": (completion(logprobs=True), 400, "invalid_request", "logprobs"),
}

RAW = {
    "malformed JSON": (b'{"model": "echo", ', 400, "invalid_json"),
    "empty body": (b"", 400, "invalid_json"),
    "not an object": (b"[1, 2]", 400, "invalid_request"),
    "NaN temperature": (
        b'{"model":"echo","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        400,
        "invalid_json",
    ),
    "huge number": (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"max_tokens":1e400}', 400, None),
    "invalid UTF-8": (b'{"model":"\xff\xfe"}', 400, "invalid_json"),
    "lone surrogate": (b'{"model":"echo","messages":[{"role":"user","content":"\\ud800"}]}', 400, None),
    "deep nesting": (b'{"model":"echo","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, None),
    "10 MB body": (b'{"model":"echo","prompt":"' + b"x" * 10_000_000 + b'"}', 413, "request_too_large"),
}


async def test_every_malformed_request_is_refused_with_its_field(echo):
    wrong = []
    for name, ((path, body), status, code, param) in TABLE.items():
        response = await echo.client.post(path, json=body)
        error = response.json().get("error", {})
        got = (response.status_code, error.get("code"), error.get("param"))
        if got[:2] != (status, code) or (param is not None and error.get("param") != param):
            wrong.append(f"{name}: expected {(status, code, param)}, got {got}: {error.get('message')}")
        elif error["type"] != "invalid_request_error" or not error["message"]:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)
    good = await echo.client.post(CHAT, json={"model": "echo", "messages": HI})
    assert good.status_code == 200


@pytest.mark.parametrize("name", list(RAW))
async def test_bodies_that_are_not_requests(echo, name):
    body, status, code = RAW[name]
    response = await echo.client.post(CHAT, content=body)
    error = response.json()["error"]
    assert response.status_code == status
    assert code is None or error["code"] == code
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model":"echo","messages":[{"role":"user","content":"\\ud800"}]}', "lone surrogate"),
        (b'{"model":"echo","messages":[{"role":"user","content":"\\udbffx"}]}', "lone surrogate"),
        # Escaped, and cut short: the backslash is text.
        (b'{"model":"echo","messages":[{"role":"user","content":"\\\\ud800"', "not valid JSON"),
        (b"[1, 2]", "the request body: expected `object`, got `array`"),
        (
            b'{"model":"echo","messages":[{"role":"user","content":"x"}],"seed":9223372036854775808}',
            "9223372036854775807",
        ),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"top_k":2147483648}', "at most 2147483647"),
        (
            b'{"model":"echo","messages":[{"role":"user","content":"x"}],"repetition_penalty":0}',
            "above 0 and at most 10",
        ),
    ],
)
async def test_messages_say_what_is_wrong(echo, body, message):
    error = (await echo.client.post(CHAT, content=body)).json()["error"]
    assert message in error["message"]


async def test_names_of_tools_may_be_those_of_mcp_servers(echo):
    tools = [{"type": "function", "function": {"name": name}} for name in ("a_B-1", "files.read", "profile/update")]
    assert (await echo.client.post(CHAT, json={"model": "echo", "messages": HI, "tools": tools})).status_code == 200


async def test_a_known_model_without_workers_is_503_with_retry_after(echo):
    await echo.stop(echo._running[0][0])
    await echo.until(lambda: not echo.frontend.models.names())
    response = await echo.client.post(CHAT, json={"model": "echo", "messages": HI})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "no_instances"


async def test_errors_are_counted(echo):
    await echo.client.post(CHAT, content=b"{")
    text = (await echo.client.get("/metrics")).text
    assert 'dynamo_frontend_requests_total{endpoint="chat_completions",error_type="invalid_request"' in text
    assert json.loads((await echo.client.get("/live")).text) == {"status": "live"}
