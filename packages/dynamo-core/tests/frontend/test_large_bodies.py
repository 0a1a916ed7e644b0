"""Bodies of very many values: refused before anything walks through them, or worked on beside the event loop."""

from __future__ import annotations

import asyncio
import gc
import json

import httpx
import pytest

from dynamo.errors import InvalidRequest
from dynamo.frontend.body_bounds import LIST_LIMIT, decode_json
from dynamo.frontend.requests import ChatRequest, CompletionRequest, decode_body
from dynamo.preprocessor.chat_template import ChatTemplate

HI = {"role": "user", "content": "x"}
PART = {"type": "text", "text": "x"}
CALL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IDS = [1] * 1_000_000


def chat(**fields):
    return "/v1/chat/completions", {"model": "echo", "messages": [HI], **fields}


TABLE = {
    "messages": (chat(messages=[HI] * 100_000), "messages", "invalid_request"),
    "parts": (chat(messages=[{"role": "user", "content": [PART] * 20_000}]), "messages", "invalid_request"),
    "tools": (chat(tools=[CALL] * 20_000), "tools", "invalid_request"),
    "logit_bias": (chat(logit_bias={str(i): 1 for i in range(20_000)}), "logit_bias", "invalid_request"),
    "stop_token_ids": (chat(stop_token_ids=IDS), "stop_token_ids", "invalid_request"),
    "annotations": (chat(nvext={"annotations": ["x"] * 20_000}), "nvext.annotations", "invalid_request"),
    "template variables": (chat(chat_template_kwargs={"a": [[]] * 600_000}), None, "invalid_request"),
    "template variable names": (
        chat(chat_template_kwargs={f"k{i}": i for i in range(20_000)}),
        "chat_template_kwargs",
        "invalid_request",
    ),
    "detokenize": (("/detokenize", {"model": "echo", "tokens": IDS}), "tokens", "invalid_request"),
    "token_data": (chat(nvext={"token_data": IDS}), "nvext.token_data", "context_length_exceeded"),
    "prompt ids": (("/v1/completions", {"model": "echo", "prompt": IDS}), "prompt", "context_length_exceeded"),
    # A value of another type behind them would be found by walking through them.
    "ids before the mixture": (
        ("/v1/completions", {"model": "echo", "prompt": [*IDS, "x"]}),
        "prompt",
        "context_length_exceeded",
    ),
    "prompt lists": (("/v1/completions", {"model": "echo", "prompt": [[1]] * 200_000}), "prompt", "invalid_request"),
    "embedding ids": (("/v1/embeddings", {"model": "echo", "input": IDS}), "input", "context_length_exceeded"),
    "embedding lists": (("/v1/embeddings", {"model": "echo", "input": [[1]] * 200_000}), "input", "invalid_request"),
    "long embedding list": (
        ("/v1/embeddings", {"model": "echo", "input": [[1], IDS]}),
        "input",
        "context_length_exceeded",
    ),
    "response items": (("/v1/responses", {"model": "echo", "input": [HI] * 100_000}), "input", "invalid_request"),
    "message blocks": (
        ("/v1/messages", {"model": "echo", "max_tokens": 1, "messages": [HI] * 100_000}),
        None,
        "invalid_request",
    ),
    "tokenize": (("/tokenize", {"model": "echo", "messages": [HI] * 100_000}), "messages", "invalid_request"),
}


@pytest.mark.parametrize("row", TABLE)
async def test_too_many_values_are_refused(row, echo):
    (path, body), param, code = TABLE[row]
    response = await echo.client.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    if path != "/v1/messages":
        assert (error["param"], error["code"]) == (param, code)
    assert (await echo.client.get("/live")).status_code == 200


async def test_other_requests_are_answered_while_a_long_conversation_is_rendered(echo):
    messages = [HI, {"role": "assistant", "content": "y"}] * (LIST_LIMIT // 2)
    large = asyncio.create_task(echo.client.post("/v1/chat/completions", json={"model": "echo", "messages": messages}))
    answered = 0
    async with httpx.AsyncClient(base_url=echo.client.base_url) as other:
        while not large.done():
            answered += (await other.get("/live")).status_code == 200
    assert (await large).status_code in (200, 400)  # 400: it is longer than the context
    assert answered > 5


async def test_other_requests_are_answered_while_large_arguments_are_rendered(echo):
    arguments = json.dumps({"a": ["x"] * 200_000})
    call = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}]}
    body = {"model": "echo", "messages": [HI, call]}
    large = asyncio.create_task(echo.client.post("/v1/chat/completions", json=body))
    answered = 0
    async with httpx.AsyncClient(base_url=echo.client.base_url) as other:
        while not large.done():
            answered += (await other.get("/live")).status_code == 200
    assert (await large).status_code == 400
    assert answered > 5


async def test_many_ids_within_the_context_are_answered(make_deployment):
    argv = ["--max-model-len", "100000", "--num-blocks", "10000"]
    deployment = await make_deployment({"backend": "echo", "argv": argv})
    await deployment.serves("echo")
    body = {"model": "echo", "prompt": [5] * 50_000, "max_tokens": 1}
    answer = await deployment.client.post("/v1/completions", json=body)
    assert answer.json()["usage"]["prompt_tokens"] == 50_000
    wrong = await deployment.client.post("/v1/completions", json={**body, "prompt": [5] * 50_000 + [2**62]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt")
    ids = await deployment.client.post("/detokenize", json={"tokens": [2**70]})
    assert (ids.status_code, ids.json()["error"]["param"]) == (400, "tokens")


async def test_schemas_that_engines_compile_are_bounded(demo):
    schema = {"type": "object", "properties": {f"field_{n}": {"type": "string"} for n in range(20_000)}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    for fields, param in (
        ({"response_format": wanted}, "response_format.json_schema.schema"),
        ({"tools": tools, "tool_choice": "required"}, "tools"),
        ({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tools"),
    ):
        body = {"model": "demo", "messages": [HI], **fields}
        refused = await demo.client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_large_bodies_are_decoded_without_looking_for_cycles():
    body = json.dumps({"model": "m", "prompt": [[1]] * 200_000}).encode()
    before = sum(generation["collections"] for generation in gc.get_stats())
    request = decode_body(body, CompletionRequest)
    # Making so many lists would have led to hundreds.
    assert sum(generation["collections"] for generation in gc.get_stats()) - before < 10
    assert len(request.prompt) == 200_000
    assert gc.isenabled()
    with pytest.raises(InvalidRequest):
        decode_body(body + b"x", CompletionRequest)
    assert gc.isenabled()


def test_long_texts_with_brackets_are_no_structure():
    text = '[{"a": 1}] ' * 50_000
    request = decode_body(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode(), ChatRequest
    )
    assert request.messages[0]["content"] == text


def test_structures_of_too_many_values_are_refused():
    for body in (b"[" + b"[]," * 600_000 + b"[]]", b"{" + b'"a":1,' * 600_000 + b'"a":1}'):
        with pytest.raises(InvalidRequest, match="more than 500000"):
            decode_json(body, object)


def test_a_template_is_given_as_many_messages_as_are_allowed():
    template = ChatTemplate("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}")
    assert template.render([HI] * LIST_LIMIT).count("\n") == LIST_LIMIT
