"""Grammars as vLLM's clients name them: ``structured_outputs``, and ``guided_*``, at chats, completions and in ``nvext``."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("llguidance", reason="guided decoding needs the extra dynamo-core[guided]")

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PLATE = r"[a-f]{3}-[0-9]{4}"
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
CLOSED = {**CITY, "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": CLOSED}}
LARGE = "a" * (257 << 10)


async def post(deployment, path=CHAT, status=200, **fields):
    prompt = {"messages": [{"role": "user", "content": "Which city?"}]} if path == CHAT else {"prompt": "Which city?"}
    body = {"model": "demo", "temperature": 0, "max_tokens": 40, **prompt, **fields}
    response = await deployment.client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


async def text(deployment, path=CHAT, reason="stop", **fields):
    choice = (await post(deployment, path, **fields))["choices"][0]
    assert choice["finish_reason"] == reason
    return choice["message"]["content"] if path == CHAT else choice["text"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_each_kind_is_followed_under_each_of_its_names(demo, path):
    for kind, value, follows in (
        ("regex", PLATE, lambda answer: re.fullmatch(PLATE, answer)),
        ("choice", ["positive", "negative"], lambda answer: answer in ("positive", "negative")),
        ("grammar", 'start: "x" ("y" | "z")', lambda answer: answer in ("xy", "xz")),
        ("json", CLOSED, lambda answer: json.loads(answer)["city"] in ("Oslo", "Rome")),
        ("json", json.dumps(CLOSED), lambda answer: json.loads(answer)["city"] in ("Oslo", "Rome")),
    ):
        guided = {f"guided_{kind}": value}
        for fields in ({"structured_outputs": {kind: value}}, guided, {"nvext": guided}):
            assert follows(await text(demo, path, **fields)), fields
    begun = await text(demo, path, "length", structured_outputs={"json_object": True}, max_tokens=3)
    assert begun.startswith("{")


async def test_what_is_null_or_of_the_style_of_json_changes_nothing(demo):
    outputs = {"choice": ["a"], "regex": None, "disable_any_whitespace": True, "whitespace_pattern": " "}
    assert await text(demo, structured_outputs=outputs, guided_json=None) == "a"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": CITY, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": CITY, "nvext": {"guided_choice": ["a"]}}, "nvext.guided_choice"),
        ({"guided_json": CITY, "structured_outputs": {"json": CITY}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs.json_object"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"guided_regex": "a", "tools": [TOOL], "tool_choice": "required"}, "guided_regex"),
        (
            {"nvext": {"guided_regex": "a"}, "tools": [TOOL]}
            | {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            "nvext.guided_regex",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_choice": ["a"] * 10_001}, "guided_choice"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_json": "[" * 5000}, "guided_json"),
        ({"guided_json": {"title": LARGE}}, "guided_json"),
        ({"guided_grammar": LARGE}, "guided_grammar"),
        ({"guided_choice": [LARGE]}, "guided_choice"),
        # These the engine refuses, in the client's words all the same.
        ({"guided_json": {"type": "nonsense"}}, "guided_json"),
        ({"structured_outputs": {"regex": "(unclosed"}}, "structured_outputs.regex"),
        ({"nvext": {"guided_grammar": "not a grammar ::"}}, "nvext.guided_grammar"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(demo, fields, param):
    error = (await post(demo, status=400, **fields))["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    if "response_format" not in fields and "tools" not in fields:
        error = (await post(demo, COMPLETIONS, status=400, **fields))["error"]
        assert error["param"] == param


async def test_the_engines_refusal_of_a_schema_names_the_clients_field(demo):
    wrong = {"type": "nonsense"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": wrong}}
    tool = {"type": "function", "function": {"name": "f", "parameters": wrong}}
    for fields, param in (
        ({"response_format": wanted}, "response_format"),
        ({"tools": [tool], "tool_choice": "required"}, "tools"),
    ):
        error = (await post(demo, status=400, **fields))["error"]
        assert error["param"] == param
        assert "the JSON schema is not valid" in error["message"]
    fields = {"model": "demo", "input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": wrong}}}
    refused = await demo.client.post("/v1/responses", json=fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "text.format")


async def test_tools_that_are_offered_only_do_not_stand_in_the_way(demo):
    assert await text(demo, guided_choice=["Oslo"], tools=[TOOL], tool_choice="auto") == "Oslo"


@pytest.mark.parametrize("parser", ["deepseek_r1", "qwen3"])
async def test_a_forced_word_is_no_reasoning(make_deployment, parser):
    deployment = await make_deployment({"backend": "reference", "name": "demo", "reasoning_parser": parser})
    await deployment.serves("demo")
    message = (await post(deployment, guided_choice=["Oslo", "Rome"]))["choices"][0]["message"]
    assert message["content"] in ("Oslo", "Rome")
    assert not message.get("reasoning_content")


async def test_strict_frontends_know_the_names(make_deployment):
    deployment = await make_deployment({"backend": "reference", "name": "demo"}, strict=True)
    await deployment.serves("demo")
    assert await text(deployment, structured_outputs={"choice": ["a"], "disable_fallback": True}) == "a"
    error = (await post(deployment, status=400, structured_outputs={"choices": ["a"]}))["error"]
    assert (error["param"], error["code"]) == ("structured_outputs.choices", "unknown_parameter")
