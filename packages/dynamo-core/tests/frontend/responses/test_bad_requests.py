"""Malformed and unsupported requests to ``/v1/responses``: each is refused with the field that is at fault."""

from __future__ import annotations

RESPONSES = "/v1/responses"


def item(**fields):
    return {"input": [{"type": "message", "role": "user", "content": "x", **fields}]}


TOOL = {"type": "function", "name": "f", "parameters": {}}
TABLE = {
    "no input": ({"input": None}, "input"),
    "empty input": ({"input": []}, "input"),
    "input is a number": ({"input": 3}, "input"),
    "item is a string": ({"input": ["x"]}, "input[0]"),
    "item without type": ({"input": [{"x": 1}]}, "input[0].type"),
    "item of another type": ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    "item type is a number": ({"input": [{"type": 3}]}, "input[0].type"),
    "item reference": ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    "role": (item(role="wizard"), "input[0].role"),
    "role is a list": (item(role=["user"]), "input[0].role"),
    "content": (item(content=3), "input[0].content"),
    "content is null": (item(content=None), "input[0].content"),
    "image": (item(content=[{"type": "input_image", "image_url": "x"}]), "input[0].content[0].type"),
    "part is a string": (item(content=["x"]), "input[0].content[0].type"),
    "part without text": (item(content=[{"type": "input_text"}]), "input[0].content[0].text"),
    "call without id": ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    "call arguments": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]},
        "input[0].arguments",
    ),
    "output": ({"input": [{"type": "function_call_output", "call_id": "c", "output": 3}]}, "input[0].output"),
    "output id": ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    "built-in tool": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "tool without name": ({"tools": [{"type": "function"}]}, "tools[0].name"),
    "tool parameters": ({"tools": [{**TOOL, "parameters": 3}]}, "tools[0].parameters"),
    "tool is a string": ({"tools": ["f"]}, "tools[0]"),
    "tool_choice": ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    "hosted tool_choice": ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    "tool_choice of no tool": ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    "tool_choice without tools": ({"tool_choice": "required"}, "tool_choice"),
    "background": ({"background": True}, "background"),
    "conversation": ({"conversation": "conv_1"}, "conversation"),
    "prompt": ({"prompt": {"id": "x"}}, "prompt"),
    "context_management": ({"context_management": [{"type": "compaction"}]}, "context_management"),
    "moderation": ({"moderation": {"model": "x"}}, "moderation"),
    "top_logprobs": ({"top_logprobs": 21}, "top_logprobs"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "no tokens": ({"max_output_tokens": 0}, "max_output_tokens"),
    "tokens is a string": ({"max_output_tokens": "3"}, "max_output_tokens"),
    "temperature": ({"temperature": 3}, "temperature"),
    "top_p": ({"top_p": -1}, "top_p"),
    "stream": ({"stream": "yes"}, "stream"),
    "metadata value": ({"metadata": {"a": 3}}, "metadata[...]"),
    "metadata pairs": ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    "metadata length": ({"metadata": {"a": "x" * 513}}, "metadata"),
    "format": ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    "format is a string": ({"text": {"format": "json"}}, "text.format.type"),
    "schema": ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    "engine without formats": ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    "effort": ({"reasoning": {"effort": 3}}, "reasoning.effort"),
    "previous response": ({"previous_response_id": "resp_none"}, "previous_response_id"),
    "previous response is a number": ({"previous_response_id": 3}, "previous_response_id"),
}


async def test_every_row_is_refused_with_its_field(echo):
    for name, (fields, param) in TABLE.items():
        response = await echo.client.post(RESPONSES, json={"model": "echo", "input": "x", **fields})
        assert response.status_code == 400, (name, response.text)
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error", name
        assert error["param"] == param, (name, error)
    response = await echo.client.post(RESPONSES, json={"model": "echo", "input": "x"})
    assert response.status_code == 200


async def test_models_and_bodies_are_checked(echo):
    unknown = await echo.client.post(RESPONSES, json={"model": "nope", "input": "x"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert (await echo.client.post(RESPONSES, json={"input": "x"})).json()["error"]["param"] == "model"
    assert (await echo.client.post(RESPONSES, content=b"{")).json()["error"]["code"] == "invalid_json"


async def test_lists_and_ids_are_checked(echo):
    made = (await echo.client.post(RESPONSES, json={"model": "echo", "input": "x"})).json()["id"]
    items = f"{RESPONSES}/{made}/input_items"
    for query, param in (("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order")):
        response = await echo.client.get(f"{items}?{query}")
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), query
    assert (await echo.client.get(f"{items}?after=nothing")).json()["error"]["param"] == "after"
    assert (await echo.client.get(f"{RESPONSES}/{made}?stream=true")).json()["error"]["param"] == "stream"
    for path in (f"{RESPONSES}/resp_none", f"{RESPONSES}/resp_none/input_items"):
        response = await echo.client.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), path
