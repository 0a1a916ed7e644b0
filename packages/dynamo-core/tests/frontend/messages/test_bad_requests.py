"""Malformed and unsupported requests to ``/v1/messages``: each is refused in Anthropic's form, and says why."""

from __future__ import annotations

MESSAGES = "/v1/messages"
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def content(value, role="user"):
    return {"messages": [{"role": role, "content": value}]}


# What each row holds: changed fields, and what the message must name.
TABLE = {
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "message is a string": ({"messages": ["x"]}, "messages[0]"),
    "role": (content("x", "wizard"), "messages[0].role"),
    "role is a list": (content("x", ["user"]), "messages[0].role"),
    "content": (content(3), "messages[0].content"),
    "content is null": (content(None), "messages[0].content"),
    "content of the assistant": (content(3, "assistant"), "messages[0].content"),
    "block is a string": (content(["x"]), "messages[0].content[0]"),
    "image": (content([{"type": "image", "source": {}}]), "messages[0].content[0].type"),
    "text is a number": (content([{"type": "text", "text": 3}]), "messages[0].content[0].text"),
    "result without id": (content([{"type": "tool_result"}]), "messages[0].content[0].tool_use_id"),
    "result with an image": (
        content([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}]),
        "messages[0].content[0].content[0].type",
    ),
    "result is a number": (
        content([{"type": "tool_result", "tool_use_id": "t", "content": 3}]),
        "messages[0].content[0].content",
    ),
    "use by the user": (
        content([{"type": "tool_use", "id": "t", "name": "f", "input": {}}]),
        "messages[0].content[0].type",
    ),
    "use without id": (
        content([{"type": "tool_use", "name": "f", "input": {}}], "assistant"),
        "messages[0].content[0].id",
    ),
    "use without input": (
        content([{"type": "tool_use", "id": "t", "name": "f"}], "assistant"),
        "messages[0].content[0].input",
    ),
    "server tool use": (content([{"type": "server_tool_use"}], "assistant"), "messages[0].content[0].type"),
    "system is a number": ({"system": 3}, "system"),
    "system block": ({"system": [{"type": "image"}]}, "system[0].type"),
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "zero max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens is a string": ({"max_tokens": "5"}, "max_tokens"),
    "temperature": ({"temperature": -1}, "temperature"),
    "top_p": ({"top_p": 2}, "top_p"),
    "top_k": ({"top_k": -2}, "top_k"),
    "stop is a string": ({"stop_sequences": "x"}, "stop_sequences"),
    "empty stop": ({"stop_sequences": [""]}, "stop"),
    "too many stops": ({"stop_sequences": ["x"] * 100}, "stop_sequences"),
    "server tool": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    "tool without name": ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    "tool without schema": ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    "tool_choice": ({"tools": [TOOL], "tool_choice": {"type": "maybe"}}, "tool_choice"),
    "tool_choice is a string": ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
    "tool_choice type is a list": ({"tools": [TOOL], "tool_choice": {"type": []}}, "tool_choice"),
    "tool_choice without name": ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
    "tool_choice of no tool": ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "'g'"),
    "tool_choice without tools": ({"tool_choice": {"type": "any"}}, "tool_choice"),
    "thinking": ({"thinking": {"type": "maybe"}}, "thinking.type"),
    "thinking type is a list": ({"thinking": {"type": []}}, "thinking.type"),
    "format": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    "mcp_servers": ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    "container": ({"container": "x"}, "container"),
    "long prompt": (content("word " * 5000), "context"),
}
#: Rows about what only an answer needs.
ANSWER_ONLY = ("max_tokens", "temperature", "top_p", "top_k", "stop", "prompt")


async def test_every_row_is_refused_and_says_why(echo):
    good = {"model": "echo", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    for name, (fields, named) in TABLE.items():
        body = {**good, **fields}
        paths = [MESSAGES] if any(word in name for word in ANSWER_ONLY) else [MESSAGES, f"{MESSAGES}/count_tokens"]
        for path in paths:
            response = await echo.client.post(path, json=body)
            assert response.status_code == 400, (name, response.text)
            answer = response.json()
            assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error"), name
            assert named in answer["error"]["message"], (name, answer)
    assert (await echo.client.post(MESSAGES, json=good)).status_code == 200


async def test_bodies_that_are_not_json_are_refused(echo):
    response = await echo.client.post(MESSAGES, content=b"{")
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_the_error_form_is_that_of_this_endpoint_only(echo):
    await echo.client.post(MESSAGES, content=b"{")
    other = await echo.client.post("/v1/chat/completions", content=b"{")
    assert other.json()["error"]["code"] == "invalid_json"
