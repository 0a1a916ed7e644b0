"""Tool calls and reasoning of a real model and of scripted text, whole and streamed."""

from __future__ import annotations

import json

import pytest

CHAT = "/v1/chat/completions"


def tool(name="get_weather", **properties):
    parameters = {"type": "object", "properties": properties or {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


async def streamed(client, body):
    """The message that a client puts together of a stream, and its finish reason."""
    message = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    async with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line or line == "data: [DONE]":
                continue
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            reason = choice["finish_reason"] or reason
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", []):
                if call["index"] == len(message["tool_calls"]):
                    assert call["type"] == "function"
                    message["tool_calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return message, reason


async def ask(deployment, content, model="demo", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, **fields}
    response = await deployment.client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return body, response.json()["choices"][0]


async def test_the_demo_model_calls_a_tool(demo):
    body, choice = await ask(demo, "What is the weather in Oslo?", tools=[tool()])
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    message, reason = await streamed(demo.client, body)
    assert reason == "tool_calls"
    assert [(c["name"], json.loads(c["arguments"])) for c in message["tool_calls"]] == [
        ("get_weather", {"city": "Oslo"})
    ]
    assert message["content"].strip() == ""


async def test_the_demo_model_answers_from_a_tool_result(demo):
    _, choice = await ask(demo, "What is the weather in Oslo?", tools=[tool()])
    call = choice["message"]["tool_calls"][0]
    messages = [
        {"role": "user", "content": "What is the weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": json.dumps({"city": "Oslo", "temperature": 7, "condition": "rain"}),
        },
    ]
    body = {"model": "demo", "messages": messages, "tools": [tool()], "temperature": 0}
    answer = (await demo.client.post(CHAT, json=body)).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert "Oslo" in answer["message"]["content"]
    assert "7" in answer["message"]["content"]


async def test_the_demo_model_reasons(demo):
    body, choice = await ask(demo, "What is 3 plus 4?")
    assert "7" in choice["message"]["content"]
    assert choice["message"]["reasoning_content"]
    assert "<think>" not in choice["message"]["content"] + choice["message"]["reasoning_content"]
    message, _ = await streamed(demo.client, body)
    assert message["content"] == choice["message"]["content"]
    assert message["reasoning_content"] == choice["message"]["reasoning_content"]


async def test_a_client_may_insist_on_a_call(demo):
    """The engine is guided by a schema, so that even a question that asks for none is answered with a call."""
    pytest.importorskip("llguidance")
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice_of_tool in ("required", named):
        only_two = tool(city={"enum": ["Oslo", "Rome"]})
        fields = {"tools": [only_two], "tool_choice": choice_of_tool, "max_tokens": 80, "parallel_tool_calls": False}
        body, choice = await ask(demo, "What is the capital of Norway?", **fields)
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")
        assert choice["finish_reason"] == "tool_calls"
        message, _ = await streamed(demo.client, body)
        assert [c["name"] for c in message["tool_calls"]] == ["get_weather"]
        # Text is what an answer is anyway: to ask for it changes nothing.
        _, choice = await ask(demo, "What is the capital of Norway?", **fields, response_format={"type": "text"})
        assert choice["finish_reason"] == "tool_calls"


def at(place, **more):
    """A schema of an object with nothing but a place."""
    return {"type": "object", "properties": {"at": place}, "required": ["at"], "additionalProperties": False, **more}


async def test_a_function_without_parameters_is_called_without_arguments(demo):
    pytest.importorskip("llguidance")
    tools = [{"type": "function", "function": {"name": "now"}}]
    for choice_of_tool in ("required", {"type": "function", "function": {"name": "now"}}):
        fields = {"tools": tools, "tool_choice": choice_of_tool, "parallel_tool_calls": False, "max_tokens": 40}
        _, choice = await ask(demo, "What is the weather in Oslo?", **fields)
        (call,) = choice["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("now", {})


@pytest.mark.parametrize("parser", ["deepseek_r1", "qwen3", "gpt_oss", "kimi_k2", "granite"])
async def test_a_forced_answer_is_no_reasoning(make_deployment, parser):
    """Where the engine forces the answer from its first token on, a parser that expects reasoning there finds none."""
    pytest.importorskip("llguidance")
    deployment = await make_deployment({"backend": "reference", "name": "demo", "reasoning_parser": parser})
    await deployment.serves("demo")
    schema = {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    body, choice = await ask(deployment, "Which city?", response_format=wanted, max_tokens=60)
    message, _ = await streamed(deployment.client, body)
    for content in (choice["message"]["content"], message["content"]):
        assert json.loads(content)["city"] in ("Oslo", "Rome")
    assert message["reasoning_content"] == choice["message"].get("reasoning_content", "") == ""
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}]
    fields = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60}
    _, choice = await ask(deployment, "Which city?", **fields)
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])["city"] in ("Oslo", "Rome")


CITY = {"enum": ["Oslo", "Rome"]}
PLACE = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"]}
PLACE["additionalProperties"] = False
OSLO = {"const": {"city": "Oslo"}}
#: Schemas that refer to parts of themselves, as those that pydantic makes of nested models do.
NESTED = {
    "definitions": at({"$ref": "#/$defs/Place"}, **{"$defs": {"Place": PLACE, "City": CITY}}),
    "its own root": at({"anyOf": [PLACE, {"$ref": "#"}]}, **{"$defs": {"City": CITY}}),
    "a root of its own name": at(
        {"$ref": "#/$defs/Oslo"}, **{"$id": "https://example.com/at", "$defs": {"Oslo": OSLO}}
    ),
}


@pytest.mark.parametrize("schema", NESTED.values(), ids=NESTED)
async def test_schemas_of_forced_calls_may_refer_to_their_parts(demo, schema):
    pytest.importorskip("llguidance")
    other = {"type": "object", "properties": {"n": {"$ref": "#/$defs/City"}}, "$defs": {"City": {"type": "integer"}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name, parameters in (("count", other), ("get_weather", schema))
    ]
    named = {"type": "function", "function": {"name": "get_weather"}}
    for offered, choice_of_tool in ((tools[1:], "required"), (tools, named)):
        fields = {"tools": offered, "tool_choice": choice_of_tool, "parallel_tool_calls": False, "max_tokens": 90}
        _, choice = await ask(demo, "What is the weather in Oslo?", **fields)
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["at"]["city"] in ("Oslo", "Rome")
    # Names of parts are each tool's own.
    _, choice = await ask(demo, "What is the weather in Oslo?", tools=tools, tool_choice="required", max_tokens=1)
    assert choice["finish_reason"] == "length"


async def test_without_tools_or_with_none_the_text_is_left_alone(demo):
    _, choice = await ask(demo, "What is the weather in Oslo?", tools=[tool()], tool_choice="none")
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


SCRIPTS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bergen"}}\n</tool_call>',
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Bergen"}}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Bergen"}}]',
    "pythonic": '[get_weather(city="Bergen")]',
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nBergen\n</parameter>\n</function>\n</tool_call>"
    ),
}


@pytest.mark.parametrize("name", list(SCRIPTS))
async def test_every_format_becomes_the_same_call(scripted, name):
    deployment = await scripted(SCRIPTS[name], name)
    fields = {"tools": [tool()], "max_tokens": 300}
    body, choice = await ask(deployment, "Weather?", "echo", **fields)
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Bergen"})
    assert choice["finish_reason"] == "tool_calls"
    message, reason = await streamed(deployment.client, body)
    assert reason == "tool_calls"
    assert json.loads(message["tool_calls"][0]["arguments"]) == {"city": "Bergen"}


async def test_two_calls_with_text_and_reasoning(scripted):
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
    text = "<think>two cities</think>Let me look. " + call % "Oslo" + "\n" + call % "Rome"
    deployment = await scripted(text, "hermes", "basic")
    body, choice = await ask(deployment, "Weather?", "echo", tools=[tool()], max_tokens=400)
    message = choice["message"]
    assert message["reasoning_content"] == "two cities"
    assert message["content"].strip() == "Let me look."
    assert [json.loads(c["function"]["arguments"])["city"] for c in message["tool_calls"]] == ["Oslo", "Rome"]
    stream, _ = await streamed(deployment.client, body)
    assert [json.loads(c["arguments"])["city"] for c in stream["tool_calls"]] == ["Oslo", "Rome"]
    assert stream["content"].strip() == "Let me look."
    assert len({c["id"] for c in stream["tool_calls"]}) == 2


async def test_a_cut_call_does_not_break_the_answer(scripted):
    deployment = await scripted('<tool_call>\n{"name": "get_weather", "arguments": {"ci', "hermes")
    body, choice = await ask(deployment, "Weather?", "echo", tools=[tool()], max_tokens=300)
    assert "<tool_call>" not in (choice["message"]["content"] or "")
    message, _ = await streamed(deployment.client, body)
    assert "<tool_call>" not in message["content"]


async def test_a_parser_that_is_not_installed_leaves_the_text(scripted, caplog):
    deployment = await scripted("plain text", "klingon")
    _, choice = await ask(deployment, "Weather?", "echo", tools=[tool()], max_tokens=300)
    assert choice["message"]["content"] == "plain text"
    assert "klingon" in caplog.text


BAD = {
    "no function": ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
    "empty name": ({"tools": [tool(name="")]}, "tools[0].function.name"),
    "other type": ({"tools": [{"type": "retrieval", "function": {"name": "x"}}]}, "tools[0].type"),
    "parameters": ({"tools": [{"function": {"name": "x", "parameters": 3}}]}, "tools[0].function.parameters"),
    "choice without tools": ({"tool_choice": "required"}, "tool_choice"),
    "unknown choice": ({"tools": [tool()], "tool_choice": "maybe"}, "tool_choice"),
    "named function missing": (
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        "tool_choice",
    ),
    "malformed named": ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice"),
}


async def test_malformed_tools_name_their_field(echo):
    for name, (fields, param) in BAD.items():
        body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], **fields}
        response = await echo.client.post(CHAT, json=body)
        assert response.status_code == 400, name
        assert response.json()["error"]["param"] == param, name
