"""What shows that the parameters of ``POST /v1/responses`` work."""

from __future__ import annotations

import json

from tests.e2e.parameter_effects.api import (
    CAPITAL,
    CITIES,
    COUNTRY,
    OSLO,
    RESPONSES,
    SUM,
    WEATHER,
    Api,
    Check,
    SharedCheck,
    responses,
)
from tests.e2e.parameter_effects.sampling import cache_salt, ignored, limit, priority, refused, temperature, top_p

TOOL = {"type": "function", "name": "get_weather", "parameters": CITIES}
IGNORED = {
    "max_tool_calls": 3,
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "safety_identifier": "x",
    "service_tier": "auto",
    "stream_options": {"include_obfuscation": False},
    "user": "somebody",
}
REFUSED = {
    "background": True,
    "conversation": "conv_1",
    "prompt": {"id": "x"},
    "context_management": [{"type": "compaction"}],
    "moderation": {"model": "x"},
}


def model(api: Api) -> None:
    assert responses.ask(api).body["model"] == "dynamo-demo"
    assert api.refusal(RESPONSES, 404, model="none", input="x") == "model"


def items(api: Api) -> None:
    """A text, and items of every kind."""
    assert responses.ask(api, CAPITAL).text == OSLO
    call = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": '{"city": "Oslo"}'}
    result = '{"city": "Oslo", "temperature": 7, "condition": "rain"}'
    turns = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": WEATHER}]},
        {"type": "reasoning", "summary": []},
        call,
        {"type": "function_call_output", "call_id": "c", "output": result},
    ]
    answer = responses.ask(api, input=turns, tools=[TOOL])
    assert "Oslo" in answer.text
    assert "7" in answer.text


def instructions(api: Api) -> None:
    plain, told = responses.ask(api), responses.ask(api, instructions="You are brief.")
    assert told.body["usage"]["input_tokens"] > plain.body["usage"]["input_tokens"]
    assert told.body["instructions"] == "You are brief."


def previous_response_id(api: Api) -> None:
    first = responses.ask(api, CAPITAL)
    second = responses.ask(api, SUM, previous_response_id=first.body["id"])
    turns = [item["content"][0]["text"] for item in reversed(_input_items(api, second.body["id"]))]
    assert turns == [CAPITAL, OSLO, SUM]
    assert second.body["usage"]["input_tokens"] > responses.ask(api, SUM).body["usage"]["input_tokens"]
    assert api.refusal(RESPONSES, input="x", previous_response_id="resp_none") == "previous_response_id"


def store(api: Api) -> None:
    kept, dropped = (responses.ask(api, store=value).body["id"] for value in (True, False))
    assert api.get(f"{RESPONSES}/{kept}")["id"] == kept
    assert api.client.get(f"{RESPONSES}/{dropped}").status_code == 404


def stream(api: Api) -> None:
    events = api.events(RESPONSES, input=CAPITAL, temperature=0)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == OSLO
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")


def tools(api: Api) -> None:
    assert responses.ask(api, WEATHER, tools=[TOOL]).calls == [("get_weather", {"city": "Oslo"})]
    assert api.refusal(RESPONSES, input="x", tools=[{"type": "web_search"}]) == "tools[0].type"


def tool_choice(api: Api) -> None:
    assert not responses.ask(api, WEATHER, tools=[TOOL], tool_choice="none").calls
    for forced in ("required", {"type": "function", "name": "get_weather"}):
        ((name, arguments),) = responses.ask(
            api, CAPITAL, tools=[TOOL], tool_choice=forced, parallel_tool_calls=False
        ).calls
        assert (name, arguments["city"] in ("Oslo", "Rome")) == ("get_weather", True)


def parallel_tool_calls(api: Api) -> None:
    both = "What is the weather in Oslo and in Rome?"
    assert len(responses.ask(api, both, tools=[TOOL]).calls) == 2
    single = responses.ask(api, both, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert (len(single.calls), single.body["parallel_tool_calls"]) == (1, False)


def text(api: Api) -> None:
    schema = {"type": "json_schema", "name": "country", "schema": COUNTRY}
    answer = responses.ask(api, "Answer as JSON: what is the capital of Norway?", text={"format": schema})
    assert json.loads(answer.text) == {"country": "Norway", "capital": "Oslo"}
    assert responses.ask(api, text={"format": {"type": "json_object"}}).text.lstrip().startswith("{")
    assert responses.ask(api, text={"format": {"type": "text"}, "verbosity": "low"}).text == OSLO


def reasoning(api: Api) -> None:
    assert responses.ask(api, SUM, reasoning={"effort": "low", "summary": "auto"}).reasoning
    assert not responses.ask(api, SUM, reasoning={"effort": "none"}).reasoning


def metadata(api: Api) -> None:
    assert responses.ask(api, metadata={"a": "b"}).body["metadata"] == {"a": "b"}


def truncation(api: Api) -> None:
    assert responses.ask(api, truncation="disabled").body["truncation"] == "disabled"
    assert api.refusal(RESPONSES, input="x", truncation="auto") == "truncation"


def include(api: Api) -> None:
    assert responses.ask(api).body["output"][0]["content"][0]["logprobs"] == []
    answer = responses.ask(api, include=["message.output_text.logprobs", "reasoning.encrypted_content"])
    assert len(answer.body["output"][0]["content"][0]["logprobs"]) > 3


def top_logprobs(api: Api) -> None:
    entries = responses.ask(api, top_logprobs=2).body["output"][0]["content"][0]["logprobs"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert entries


def _input_items(api: Api, response: str) -> list[dict]:
    return api.get(f"{RESPONSES}/{response}/input_items")["data"]


CHECKS: dict[str, Check] = {
    "model": model,
    "input": items,
    "instructions": instructions,
    "previous_response_id": previous_response_id,
    "store": store,
    "stream": stream,
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": parallel_tool_calls,
    "text": text,
    "reasoning": reasoning,
    "metadata": metadata,
    "truncation": truncation,
    "include": include,
    "top_logprobs": top_logprobs,
}
SHARED: dict[str, SharedCheck] = {
    "max_output_tokens": limit,
    "temperature": temperature,
    "top_p": top_p,
    "cache_salt": cache_salt,
    "priority": priority,
    **{name: ignored(name, value) for name, value in IGNORED.items()},
    **{name: refused(name, value) for name, value in REFUSED.items()},
}
