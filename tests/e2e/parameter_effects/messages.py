"""What shows that the parameters of ``POST /v1/messages`` work."""

from __future__ import annotations

import json

from tests.e2e.parameter_effects.api import (
    CAPITAL,
    CITIES,
    COUNTRY,
    MESSAGES,
    OSLO,
    STORY,
    SUM,
    WEATHER,
    Api,
    Check,
    SharedCheck,
    messages,
)
from tests.e2e.parameter_effects.sampling import (
    cache_salt,
    ignored,
    limit,
    priority,
    refused,
    temperature,
    top_k,
    top_p,
)

TOOL = {"name": "get_weather", "input_schema": CITIES}
IGNORED = {
    "metadata": {"user_id": "x"},
    "cache_control": {"type": "ephemeral"},
    "context_management": {"edits": []},
    "service_tier": "auto",
}


def model(api: Api) -> None:
    assert messages.ask(api).body["model"] == "dynamo-demo"
    assert "none" in (api.refusal(MESSAGES, 404, model="none", max_tokens=2, **messages.prompt("x")) or "")


def turns(api: Api) -> None:
    """Blocks of every kind, and a beginning of the answer to go on with."""
    use = {"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Oslo"}}
    result = '{"city": "Oslo", "temperature": 7, "condition": "rain"}'
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": WEATHER, "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": result}]},
    ]
    answer = messages.ask(api, messages=conversation, tools=[TOOL])
    assert "Oslo" in answer.text
    assert "7" in answer.text
    begun = [*messages.prompt(CAPITAL)["messages"], {"role": "assistant", "content": "The capital of"}]
    assert messages.ask(api, messages=begun).text == OSLO.removeprefix("The capital of")


def system(api: Api) -> None:
    plain, text, blocks = (
        messages.ask(api, **fields).body["usage"]["input_tokens"]
        for fields in (
            {"cache_salt": "system-0"},
            {"cache_salt": "system-1", "system": "You are brief."},
            {"cache_salt": "system-2", "system": [{"type": "text", "text": "You are brief."}]},
        )
    )
    assert plain < text == blocks


def stream(api: Api) -> None:
    events = api.events(MESSAGES, **messages.prompt(CAPITAL), temperature=0, max_tokens=50)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == OSLO
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")


def stop_sequences(api: Api) -> None:
    whole = messages.ask(api, STORY, max_tokens=40)
    cut = messages.ask(api, STORY, max_tokens=40, stop_sequences=["unheard of", " who "])
    assert cut.text == whole.text.split(" who ")[0] != whole.text
    assert (cut.body["stop_reason"], cut.body["stop_sequence"]) == ("stop_sequence", " who ")


def tools(api: Api) -> None:
    answer = messages.ask(api, WEATHER, tools=[TOOL])
    assert (answer.calls, answer.body["stop_reason"]) == ([("get_weather", {"city": "Oslo"})], "tool_use")


def tool_choice(api: Api) -> None:
    assert messages.ask(api, WEATHER, tools=[TOOL], tool_choice={"type": "auto"}).calls
    assert not messages.ask(api, WEATHER, tools=[TOOL], tool_choice={"type": "none"}).calls
    for forced in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        choice = {**forced, "disable_parallel_tool_use": True}
        ((name, arguments),) = messages.ask(api, CAPITAL, tools=[TOOL], tool_choice=choice).calls
        assert (name, arguments["city"] in ("Oslo", "Rome")) == ("get_weather", True)


def thinking(api: Api) -> None:
    assert messages.ask(api, SUM, thinking={"type": "enabled", "budget_tokens": 1024}).reasoning
    assert not messages.ask(api, SUM, thinking={"type": "disabled"}).reasoning


def output_config(api: Api) -> None:
    wanted = {"effort": "low", "format": {"type": "json_schema", "schema": COUNTRY}}
    answer = messages.ask(api, "Answer as JSON: what is the capital of Norway?", output_config=wanted)
    assert json.loads(answer.text) == {"country": "Norway", "capital": "Oslo"}


def citations(api: Api) -> None:
    """A field of text blocks."""
    block = {"type": "text", "text": CAPITAL, "citations": None}
    assert messages.ask(api, messages=[{"role": "user", "content": [block]}]).text == OSLO


CHECKS: dict[str, Check] = {
    "model": model,
    "messages": turns,
    "system": system,
    "stream": stream,
    "stop_sequences": stop_sequences,
    "tools": tools,
    "tool_choice": tool_choice,
    "thinking": thinking,
    "output_config": output_config,
    "citations": citations,
}
SHARED: dict[str, SharedCheck] = {
    "max_tokens": limit,
    "temperature": temperature,
    "top_p": top_p,
    "top_k": top_k,
    "cache_salt": cache_salt,
    "priority": priority,
    **{name: ignored(name, value) for name, value in IGNORED.items()},
    "mcp_servers": refused("mcp_servers", [{"url": "x"}]),
    "container": refused("container", "x"),
}
