"""The Messages API as the `anthropic` SDK sees it: whole and streamed, tools, thinking, stop sequences, errors."""

from __future__ import annotations

import contextlib
import json

import anthropic
import pytest

WEATHER = {
    "name": "get_weather",
    "description": "x",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'


@contextlib.asynccontextmanager
async def sdk(deployment, **options):
    base = f"http://127.0.0.1:{deployment.frontend.server.port}"
    async with anthropic.AsyncAnthropic(base_url=base, max_retries=0, **{"api_key": "x", **options}) as client:
        yield client


def user(content):
    return {"role": "user", "content": content}


async def collected(stream):
    return [event async for event in stream]


async def test_a_message_is_answered(demo):
    async with sdk(demo) as client:
        message = await client.messages.create(
            model="demo",
            max_tokens=100,
            messages=[user("What is 3 plus 4?")],
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            metadata={"user_id": "u"},
            extra_body={"temperature": 0, "top_k": 1},
        )
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "demo")
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking
    assert "7" in message.content[1].text
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens > 0


async def test_thinking_can_be_turned_off(demo):
    async with sdk(demo) as client:
        fields = {"model": "demo", "max_tokens": 100, "messages": [user("What is 3 plus 4?")]}
        without = await client.messages.create(**fields, thinking={"type": "disabled"})
        with_it = await client.messages.create(**fields, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [block.type for block in without.content] == ["text"]
    assert [block.type for block in with_it.content] == ["thinking", "text"]


async def test_events_of_thinking_and_text_come_in_order(demo):
    async with sdk(demo) as client:
        fields = {"model": "demo", "max_tokens": 100, "messages": [user("What is 3 plus 4?")]}
        fields["extra_body"] = {"temperature": 0}
        whole = await client.messages.create(**fields)
        events = await collected(await client.messages.create(**fields, stream=True))
    kinds = [event.type for event in events]
    shortened = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert shortened == ["message_start", *block, *block, "message_delta", "message_stop"]
    start, end = events[0].message, events[-2]
    assert start.content == []
    assert start.stop_reason is None
    assert start.usage.input_tokens > 0
    deltas = [event for event in events if event.type == "content_block_delta"]
    thinking = "".join(event.delta.thinking for event in deltas if event.delta.type == "thinking_delta")
    text = "".join(event.delta.text for event in deltas if event.delta.type == "text_delta")
    assert [thinking, text] == [whole.content[0].thinking, whole.content[1].text]
    assert end.delta.stop_reason == "end_turn"
    assert end.usage.output_tokens == whole.usage.output_tokens


async def test_a_ping_follows_the_start(echo):
    body = {"model": "echo", "max_tokens": 5, "messages": [user("a b c")], "stream": True}
    response = await echo.client.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})
    assert response.headers["content-type"].startswith("text/event-stream")
    names = [line for line in response.text.splitlines() if line.startswith("event: ")]
    assert names[:3] == ["event: message_start", "event: ping", "event: content_block_start"]
    assert "[DONE]" not in response.text


async def test_the_streaming_helper_of_the_sdk_follows_text_and_calls(scripted):
    deployment = await scripted("<think>hm</think>Let me look. " + CALL % "Oslo" + CALL % "Rome", "hermes", "basic")
    async with (
        sdk(deployment) as client,
        client.messages.stream(model="echo", max_tokens=400, messages=[user("Weather?")], tools=[WEATHER]) as stream,
    ):
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in final.content[2:]] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert final.stop_reason == "tool_use"
    assert len({block.id for block in final.content[2:]}) == 2


async def test_whole_and_streamed_give_the_same_message(scripted):
    deployment = await scripted("<think>hm</think>Let me look. " + CALL % "Oslo", "hermes", "basic")
    fields = {"model": "echo", "max_tokens": 400, "messages": [user("Weather?")], "tools": [WEATHER]}
    async with sdk(deployment) as client:
        whole = await client.messages.create(**fields)
        async with client.messages.stream(**fields) as stream:
            streamed = await stream.get_final_message()

    def plain(message):
        # Identifiers differ, and how much of the prompt was cached.
        dumped = message.model_dump(exclude={"id": True, "content": {"__all__": {"id", "parsed_output"}}})
        usage = dumped.pop("usage")
        return dumped, usage["output_tokens"], usage["input_tokens"] + usage["cache_read_input_tokens"]

    assert plain(streamed) == plain(whole)


async def test_a_tool_is_called_and_its_result_used(demo):
    messages = [user("What is the weather in Oslo?")]
    fields = {"model": "demo", "max_tokens": 100, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    async with sdk(demo) as client:
        first = await client.messages.create(**fields, messages=messages)
        (call,) = [block for block in first.content if block.type == "tool_use"]
        assert first.stop_reason == "tool_use"
        assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
        result = json.dumps({"city": "Oslo", "temperature": 7, "condition": "rain"})
        messages += [
            {"role": "assistant", "content": first.content},
            user([{"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": result}]}]),
        ]
        second = await client.messages.create(**fields, messages=messages)
    assert second.stop_reason == "end_turn"
    assert "Oslo" in second.content[-1].text
    assert "7" in second.content[-1].text


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
async def test_a_tool_can_be_forced(demo, choice):
    async with sdk(demo) as client:
        message = await client.messages.create(
            model="demo",
            max_tokens=60,
            messages=[user("Hello Rome")],
            tools=[WEATHER],
            tool_choice={**choice, "disable_parallel_tool_use": True},
        )
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "get_weather"


async def test_tool_choice_none_leaves_tools_out(scripted):
    deployment = await scripted(CALL % "Oslo", "hermes")
    async with sdk(deployment) as client:
        message = await client.messages.create(
            model="echo",
            max_tokens=200,
            messages=[user("Weather?")],
            tools=[WEATHER],
            tool_choice={"type": "none"},
        )
    assert [block.type for block in message.content] == ["text"]


async def test_a_json_schema_is_followed(demo):
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    async with sdk(demo) as client:
        message = await client.messages.create(
            model="demo",
            max_tokens=60,
            messages=[user("x")],
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
    assert json.loads(message.content[-1].text) == {"n": 1}


async def test_the_reason_to_stop_is_told(scripted):
    deployment = await scripted("one two three four")
    fields = {"model": "echo", "messages": [user("x")]}
    async with sdk(deployment) as client:
        short = await client.messages.create(**fields, max_tokens=1)
        stopped = await client.messages.create(**fields, max_tokens=100, stop_sequences=["nine", "three"])
        events = await collected(
            await client.messages.create(**fields, max_tokens=100, stop_sequences=["three"], stream=True)
        )
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 1)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "three")
    assert stopped.content[0].text == "one two "
    assert (events[-2].delta.stop_reason, events[-2].delta.stop_sequence) == ("stop_sequence", "three")


async def test_a_call_that_was_cut_is_still_an_object(scripted):
    deployment = await scripted('<tool_call>\n{"name": "get_weather", "arguments": {"ci', "hermes")
    async with sdk(deployment) as client:
        message = await client.messages.create(
            model="echo", max_tokens=300, messages=[user("Weather?")], tools=[WEATHER]
        )
    (call,) = message.content
    assert call.input == {"INVALID_JSON": '{"ci'}


async def test_cached_tokens_are_told_apart(echo):
    fields = {"model": "echo", "max_tokens": 1, "messages": [user("word " * 100)]}
    async with sdk(echo) as client:
        first = (await client.messages.create(**fields)).usage
        second = (await client.messages.create(**fields)).usage
    assert first.cache_read_input_tokens == 0
    assert second.cache_read_input_tokens > 0
    assert second.input_tokens + second.cache_read_input_tokens == first.input_tokens


async def test_blocks_of_all_kinds_become_one_conversation(echo):
    messages = [
        user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hidden", "signature": ""},
                {"type": "redacted_thinking", "data": "hidden"},
                {"type": "text", "text": "three"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": "four"}},
            ],
        },
        user(
            [
                {"type": "tool_result", "tool_use_id": "t1", "content": "five"},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
                {"type": "text", "text": "six"},
            ]
        ),
        {"role": "assistant", "content": "seven"},
        user("eight"),
    ]
    async with sdk(echo) as client:
        message = await client.messages.create(model="echo", max_tokens=1000, system="system", messages=messages)
    text = message.content[0].text
    words = ("system", "one", "two", "three", "four", "five", "six", "seven", "eight")
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    assert "hidden" not in text


async def test_the_last_message_of_the_assistant_is_gone_on_with(echo):
    messages = [user("one"), {"role": "assistant", "content": "The answer is ("}]
    async with sdk(echo) as client:
        message = await client.messages.create(model="echo", max_tokens=1000, messages=messages)
    # The echo engine repeats the prompt, which ends within the message: no turn of the assistant is opened behind it.
    chat = {"add_generation_prompt": False, "continue_final_message": True, "max_tokens": 1}
    response = await echo.client.post("/v1/chat/completions", json={"model": "echo", "messages": messages, **chat})
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == response.json()["usage"]["prompt_tokens"]
    assert message.content[0].text.endswith("The answer is (")


async def test_tokens_are_counted_as_they_will_be_used(echo):
    for text in ("hello", "word " * 4000):
        fields = {"model": "echo", "messages": [user(text)], "system": "s", "tools": [WEATHER]}
        async with sdk(echo) as client:
            count = await client.messages.count_tokens(**fields)
            if len(text) < 100:
                message = await client.messages.create(**fields, max_tokens=1)
                assert message.usage.input_tokens == count.input_tokens
            else:
                assert count.input_tokens > 4000


async def test_errors_are_those_of_the_sdk(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, api_keys=["right"])
    await deployment.serves("echo")
    fields = {"max_tokens": 5, "messages": [user("x")]}
    async with sdk(deployment, api_key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await client.messages.create(model="echo", **fields)
    async with sdk(deployment, api_key="right") as client:
        assert (await client.messages.create(model="echo", **fields)).content
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.messages.create(model="nope", **fields)
        with pytest.raises(anthropic.BadRequestError) as wrong:
            await client.messages.create(model="echo", **{**fields, "max_tokens": 0})
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(model="nope", messages=[user("x")])
    expected = ((refused, "authentication_error"), (unknown, "not_found_error"), (wrong, "invalid_request_error"))
    for caught, kind in expected:
        body = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["error"]["message"]


async def test_a_model_without_workers_is_overloaded(make_deployment):
    deployment = await make_deployment({"backend": "echo"})
    await deployment.serves("echo")
    worker, _ = deployment._running[0]
    await deployment.stop(worker)
    await deployment.until(lambda: not deployment.frontend.models.ready())
    body = {"model": "echo", "max_tokens": 5, "messages": [user("x")]}
    response = await deployment.client.post("/v1/messages", json=body)
    assert response.status_code == 529
    assert response.json()["error"]["type"] == "overloaded_error"
    assert int(response.headers["retry-after"]) >= 1


async def test_a_failure_in_the_stream_is_an_event(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--fail-after", "3"]}, migration_limit=0)
    await deployment.serves("echo")
    async with sdk(deployment) as client:
        stream = await client.messages.create(
            model="echo", max_tokens=100, messages=[user("a b c d e f g")], stream=True
        )
        assert (await stream.__anext__()).type == "message_start"
        with pytest.raises(anthropic.APIStatusError, match="api_error"):
            await collected(stream)
