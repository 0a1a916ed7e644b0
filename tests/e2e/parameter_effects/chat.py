"""What shows that the parameters of ``POST /v1/chat/completions`` work."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.parameter_effects.api import (
    CAPITAL,
    CHAT,
    CITIES,
    COUNTRY,
    OSLO,
    STORY,
    SUM,
    WEATHER,
    Api,
    Check,
    Dialect,
    SharedCheck,
    chat,
)
from tests.e2e.parameter_effects.sampling import HOT, ignored, limit, refused

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITIES}}
BOTH = "What is the weather in Oslo and in Rome?"
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def _variant(kind: str, field: str, schema: dict[str, Any]) -> dict[str, Any]:
    properties = {"kind": {"const": kind, "type": "string"}, field: schema}
    return {"type": "object", "properties": properties, "required": ["kind", field], "additionalProperties": False}


#: As pydantic writes a field that is a discriminated union.
UNION = {
    "type": "object",
    "properties": {
        "place": {
            "discriminator": {"propertyName": "kind", "mapping": {"city": "#/$defs/City", "count": "#/$defs/Count"}},
            "oneOf": [{"$ref": "#/$defs/City"}, {"$ref": "#/$defs/Count"}],
        }
    },
    "required": ["place"],
    "additionalProperties": False,
    "$defs": {
        "City": _variant("city", "name", {"enum": ["Oslo", "Rome"]}),
        "Count": _variant("count", "value", {"type": "integer", "minimum": 0, "maximum": 9}),
    },
}
IGNORED = {
    "audio": {"voice": "x", "format": "wav"},
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "safety_identifier": "x",
    "service_tier": "auto",
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
}


def model(api: Api) -> None:
    assert chat.ask(api).body["model"] == "dynamo-demo"
    assert api.refusal(CHAT, 404, model="none", **chat.prompt("x")) == "model"


def messages(api: Api) -> None:
    """Every role has its place in the prompt."""
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    turns = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "text", "text": WEATHER}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"city": "Oslo", "temperature": 7, "condition": "rain"}'},
    ]
    answer = chat.ask(api, messages=turns, tools=[TOOL])
    assert "Oslo" in answer.text
    assert "7" in answer.text
    assert chat.ask(
        api, messages=[{"role": "developer", "content": "Be brief."}, *chat.prompt(CAPITAL)["messages"]]
    ).text
    cut = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Os'}}
    turns[2] = {"role": "assistant", "tool_calls": [cut]}
    assert "7" in chat.ask(api, messages=turns, tools=[TOOL]).text
    for role in ("function", "assistant"):
        last = {"role": role, "name": "f", "content": "x"}
        assert chat.ask(api, messages=[*turns[:2], last], max_completion_tokens=1).tokens == 1


def max_tokens(api: Api) -> None:
    limit(api, Dialect(CHAT, "max_tokens", chat.prompt, chat.read))


def n(api: Api) -> None:
    body = api.post(CHAT, **chat.prompt(STORY), **HOT, max_completion_tokens=12, seed=3, n=3)
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    # Choice i uses seed + i.
    assert texts[2] == chat.ask(api, STORY, **HOT, max_completion_tokens=12, seed=5).text
    assert body["usage"]["completion_tokens"] <= 36
    # Streams tell the choices apart, and the calls of each.
    calls: dict[tuple[int, int], str] = {}
    for event in api.events(CHAT, **chat.prompt(BOTH), temperature=0, tools=[TOOL], n=2):
        choice = event["choices"][0]
        for call in choice["delta"].get("tool_calls", ()):
            place = choice["index"], call["index"]
            calls[place] = calls.get(place, "") + call["function"]["arguments"]
    assert {place: json.loads(arguments)["city"] for place, arguments in calls.items()} == {
        (choice, call): city for choice in (0, 1) for call, city in enumerate(("Oslo", "Rome"))
    }


def stream(api: Api) -> None:
    events = api.events(CHAT, **chat.prompt(CAPITAL), temperature=0)
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == OSLO
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any(event.get("usage") for event in events)


def stream_options(api: Api) -> None:
    events = api.events(CHAT, **chat.prompt(CAPITAL), temperature=0, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == chat.ask(api).tokens
    assert api.refusal(CHAT, **chat.prompt("x"), stream_options={"include_usage": True}) == "stream_options"


def logprobs(api: Api) -> None:
    answer = chat.ask(api, logprobs=True)
    entries = answer.body["choices"][0]["logprobs"]["content"]
    assert len(entries) == answer.tokens
    assert all(entry["logprob"] <= 0 and entry["top_logprobs"] == [] for entry in entries)
    assert chat.ask(api).body["choices"][0]["logprobs"] is None


def top_logprobs(api: Api) -> None:
    entries = chat.ask(api, logprobs=True, top_logprobs=3).body["choices"][0]["logprobs"]["content"]
    assert all(len(entry["top_logprobs"]) == 3 for entry in entries)
    assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in entries)
    assert api.refusal(CHAT, **chat.prompt("x"), top_logprobs=3) == "top_logprobs"


def tools(api: Api) -> None:
    answer = chat.ask(api, WEATHER, tools=[TOOL])
    assert (answer.calls, answer.reason) == ([("get_weather", {"city": "Oslo"})], "tool_calls")
    deltas = [
        event["choices"][0]["delta"] for event in api.events(CHAT, **chat.prompt(WEATHER), tools=[TOOL], temperature=0)
    ]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls[0]["name"] == "get_weather"
    assert json.loads("".join(call["arguments"] for call in calls)) == {"city": "Oslo"}
    assert "tool_calls" not in chat.ask(api, WEATHER).body["choices"][0]["message"]
    assert api.refusal(CHAT, **chat.prompt("x"), tools=[{"type": "retrieval"}]) == "tools[0].type"


def tool_choice(api: Api) -> None:
    assert chat.ask(api, WEATHER, tools=[TOOL], tool_choice="auto").calls
    assert not chat.ask(api, CAPITAL, tools=[TOOL], tool_choice="auto").calls
    assert not chat.ask(api, WEATHER, tools=[TOOL], tool_choice="none").calls
    for forced in ("required", NAMED):
        # A question that the model would not answer with a call.
        calls = chat.ask(api, CAPITAL, tools=[TOOL], tool_choice=forced, parallel_tool_calls=False).calls
        assert [name for name, _ in calls] == ["get_weather"]
        assert calls[0][1]["city"] in ("Oslo", "Rome")
        parts = {"type": "object", "properties": {"place": {"$ref": "#/$defs/Place"}}, "required": ["place"]}
        nested = {"name": "get_weather", "parameters": {**parts, "$defs": {"Place": {"enum": ["Oslo"]}}}}
        offered = [{"type": "function", "function": nested}]
        calls = chat.ask(api, CAPITAL, tools=offered, tool_choice=forced, parallel_tool_calls=False).calls
        assert calls[0][1]["place"] == "Oslo"
        union = {"type": "function", "function": {"name": "get_weather", "parameters": UNION, "strict": True}}
        _of_the_union(chat.ask(api, tools=[union], tool_choice=forced, parallel_tool_calls=False).calls[0][1])


def _of_the_union(answer: dict[str, Any]) -> None:
    place = answer["place"]
    if place["kind"] == "city":
        assert (set(answer), set(place), place["name"] in ("Oslo", "Rome")) == ({"place"}, {"kind", "name"}, True)
    else:
        assert (set(answer), set(place), place["value"] in range(10)) == ({"place"}, {"kind", "value"}, True)


def parallel_tool_calls(api: Api) -> None:
    assert len(chat.ask(api, BOTH, tools=[TOOL]).calls) == 2
    forced: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"}
    assert len(chat.ask(api, BOTH, **forced, parallel_tool_calls=False).calls) == 1


def response_format(api: Api) -> None:
    question = "Answer as JSON: what is the capital of Norway?"
    schema = {"type": "json_schema", "json_schema": {"name": "country", "schema": COUNTRY, "strict": True}}
    assert json.loads(chat.ask(api, question, response_format=schema).text) == {"country": "Norway", "capital": "Oslo"}
    parts = {"type": "object", "properties": {"capital": {"$ref": "#/$defs/Word"}}, "required": ["capital"]}
    schema["json_schema"]["schema"] = {**parts, "additionalProperties": False, "$defs": {"Word": {"enum": ["Oslo"]}}}
    assert json.loads(chat.ask(api, CAPITAL, response_format=schema).text) == {"capital": "Oslo"}
    schema["json_schema"]["schema"] = UNION
    _of_the_union(json.loads(chat.ask(api, CAPITAL, response_format=schema).text))
    # The model answers in words; with the format the answer is an object, or the beginning of one.
    assert chat.ask(api, CAPITAL, response_format={"type": "json_object"}).text.lstrip().startswith("{")
    assert chat.ask(api, CAPITAL, response_format={"type": "text"}).text == OSLO


def chat_template_kwargs(api: Api) -> None:
    assert chat.ask(api, SUM).reasoning
    quiet = chat.ask(api, SUM, chat_template_kwargs={"enable_thinking": False})
    assert (quiet.reasoning, quiet.text) == ("", "3 plus 4 is 7.")


def reasoning_effort(api: Api) -> None:
    assert chat.ask(api, SUM, reasoning_effort="low").reasoning
    quiet = chat.ask(api, SUM, reasoning_effort="none")
    assert (quiet.reasoning, quiet.text) == ("", "3 plus 4 is 7.")
    # Variables of the template that are given count more.
    assert chat.ask(api, SUM, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}).reasoning


def add_generation_prompt(api: Api) -> None:
    opened, closed = (
        chat.ask(api, max_completion_tokens=1, add_generation_prompt=value).body["usage"]["prompt_tokens"]
        for value in (True, False)
    )
    assert opened == closed + 1


def continue_final_message(api: Api) -> None:
    turns = [*chat.prompt(CAPITAL)["messages"], {"role": "assistant", "content": "The capital of"}]
    answer = chat.ask(api, messages=turns, continue_final_message=True, add_generation_prompt=False)
    assert answer.text == OSLO.removeprefix("The capital of")


CHECKS: dict[str, Check] = {
    "model": model,
    "messages": messages,
    "max_tokens": max_tokens,
    "n": n,
    "stream": stream,
    "stream_options": stream_options,
    "logprobs": logprobs,
    "top_logprobs": top_logprobs,
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": parallel_tool_calls,
    "response_format": response_format,
    "chat_template_kwargs": chat_template_kwargs,
    "reasoning_effort": reasoning_effort,
    "add_generation_prompt": add_generation_prompt,
    "continue_final_message": continue_final_message,
}
SHARED: dict[str, SharedCheck] = {
    "max_completion_tokens": limit,
    "functions": refused("functions", [{"name": "get_weather", "parameters": CITIES}]),
    **{name: ignored(name, value) for name, value in IGNORED.items()},
}
