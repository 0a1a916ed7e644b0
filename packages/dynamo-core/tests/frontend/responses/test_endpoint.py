"""The Responses API as the `openai` SDK sees it: whole and streamed, tools, reasoning, conversations, what is kept."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import openai
import pytest

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "x",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'


@contextlib.asynccontextmanager
async def sdk(deployment, **options):
    base = f"http://127.0.0.1:{deployment.frontend.server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, max_retries=0, **{"api_key": "x", **options}) as client:
        yield client


async def collected(stream):
    return [event async for event in stream]


async def test_a_text_is_answered(demo):
    async with sdk(demo) as client:
        response = await client.responses.create(
            model="demo",
            input="What is 3 plus 4?",
            temperature=0,
            instructions="Be brief.",
            metadata={"a": "b"},
            user="u",
        )
    assert response.status == "completed"
    assert response.id.startswith("resp_")
    assert "7" in response.output_text
    assert [item.type for item in response.output] == ["reasoning", "message"]
    reasoning, message = response.output
    assert reasoning.content[0].text
    assert "<think>" not in reasoning.content[0].text + response.output_text
    assert (message.role, message.status) == ("assistant", "completed")
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
    assert response.usage.input_tokens_details.cached_tokens >= 0
    assert (response.instructions, response.metadata, response.user) == ("Be brief.", {"a": "b"}, "u")
    assert response.incomplete_details is None
    assert response.error is None


async def test_effort_none_turns_thinking_off(demo):
    async with sdk(demo) as client:
        response = await client.responses.create(
            model="demo", input="What is 3 plus 4?", temperature=0, reasoning={"effort": "none"}
        )
    assert [item.type for item in response.output] == ["message"]
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert response.reasoning.effort == "none"


async def test_events_of_reasoning_and_text_come_in_order(demo):
    async with sdk(demo) as client:
        fields = {"model": "demo", "input": "What is 3 plus 4?", "temperature": 0}
        whole = await client.responses.create(**fields)
        events = await collected(await client.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    shortened = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    assert shortened == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        "completed",
    ]
    assert events[0].response.status == "in_progress"
    final = events[-1].response
    assert final.output_text == whole.output_text
    assert final.output[0].content[0].text == whole.output[0].content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert text == done.text == final.output_text
    ids = {event.item_id for event in events if hasattr(event, "item_id")}
    assert ids == {item.id for item in final.output}


async def test_the_streaming_helper_of_the_sdk_follows_text_and_calls(scripted):
    deployment = await scripted("<think>hm</think>Let me look. " + CALL % "Oslo" + CALL % "Rome", "hermes", "basic")
    async with (
        sdk(deployment) as client,
        client.responses.stream(model="echo", input="Weather?", tools=[WEATHER]) as stream,
    ):
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds.count("response.function_call_arguments.done") == 2
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [json.loads(item.arguments)["city"] for item in final.output[2:]] == ["Oslo", "Rome"]
    assert final.output_text.strip() == "Let me look."


async def test_whole_and_streamed_give_the_same_items(scripted):
    deployment = await scripted("<think>hm</think>Let me look. " + CALL % "Oslo", "hermes", "basic")
    fields = {"model": "echo", "input": "Weather?", "tools": [WEATHER]}
    async with sdk(deployment) as client:
        whole = await client.responses.create(**fields)
        events = await collected(await client.responses.create(**fields, stream=True))

    def plain(items):
        return [item.model_dump(exclude={"id", "call_id"}) for item in items]

    assert plain(events[-1].response.output) == plain(whole.output)
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert plain(done) == plain(whole.output)
    assert events[-1].response.output[2].call_id.startswith("call_")


async def test_a_tool_is_called_and_its_result_used(demo):
    async with sdk(demo) as client:
        asked = [{"role": "user", "content": "What is the weather in Oslo?"}]
        first = await client.responses.create(model="demo", input=asked, tools=[WEATHER], temperature=0)
        (call,) = [item for item in first.output if item.type == "function_call"]
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
        result = json.dumps({"city": "Oslo", "temperature": 7, "condition": "rain"})
        output = {"type": "function_call_output", "call_id": call.call_id, "output": result}
        by_id = await client.responses.create(
            model="demo", input=[output], previous_response_id=first.id, tools=[WEATHER], temperature=0
        )
        by_hand = await client.responses.create(
            model="demo", input=[*asked, *first.output, output], tools=[WEATHER], temperature=0
        )
    assert "Oslo" in by_id.output_text
    assert "7" in by_id.output_text
    assert by_hand.output_text == by_id.output_text
    assert by_id.previous_response_id == first.id


async def test_a_named_tool_is_forced(demo):
    async with sdk(demo) as client:
        response = await client.responses.create(
            model="demo",
            input="Hello Rome",
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "get_weather"},
            max_output_tokens=60,
        )
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert call.name == "get_weather"


async def test_a_json_schema_is_followed(demo):
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    async with sdk(demo) as client:
        response = await client.responses.create(
            model="demo", input="x", text={"format": {"type": "json_schema", "name": "n", "schema": schema}}
        )
    assert json.loads(response.output_text) == {"n": 1}
    assert response.text.format.name == "n"


async def test_too_few_tokens_make_it_incomplete(echo):
    async with sdk(echo) as client:
        fields = {"model": "echo", "input": "a b c d e f g h i j", "max_output_tokens": 3}
        whole = await client.responses.create(**fields)
        events = await collected(await client.responses.create(**fields, stream=True))
    for response in (whole, events[-1].response):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert response.output[-1].status == "incomplete"
        assert response.usage.output_tokens == 3
    assert events[-1].type == "response.incomplete"


async def test_a_conversation_goes_on_by_id(echo):
    """The echo engine says the prompt again: what earlier turns left in it is seen."""
    async with sdk(echo) as client:
        first = await client.responses.create(model="echo", input="alpha", instructions="secret")
        second = await client.responses.create(model="echo", input="beta", previous_response_id=first.id)
        third = await client.responses.create(model="echo", input="gamma", previous_response_id=second.id)
        assert "secret" in first.output_text
        assert second.output_text.index("alpha") < second.output_text.index("beta")
        assert "gamma" in third.output_text
        # A conversation survives the deletion of its beginning.
        await client.responses.delete(first.id)
        await client.responses.delete(second.id)
        fourth = await client.responses.create(model="echo", input="delta", previous_response_id=third.id)
        assert all(word in fourth.output_text for word in ("alpha", "beta", "gamma", "delta"))


async def test_instructions_are_not_carried_on(scripted):
    deployment = await scripted("yes")
    async with sdk(deployment) as client:
        first = await client.responses.create(model="echo", input="alpha", instructions="one two three four five")
        second = await client.responses.create(model="echo", input="beta", previous_response_id=first.id)
    assert second.usage.input_tokens < first.usage.input_tokens + 10
    assert second.instructions is None


async def test_what_was_kept_can_be_read_and_forgotten(echo):
    async with sdk(echo) as client:
        made = await client.responses.create(model="echo", input="alpha")
        events = await collected(
            await client.responses.create(model="echo", input="beta", previous_response_id=made.id, stream=True)
        )
        streamed = events[-1].response
        assert (await client.responses.retrieve(made.id)).model_dump() == made.model_dump()
        assert (await client.responses.retrieve(streamed.id)).output_text == streamed.output_text
        items = await client.responses.input_items.list(streamed.id, order="asc")
        assert [item.role for item in items.data] == ["user", "assistant", "user"]
        assert items.data[-1].content[0].text == "beta"
        page = await client.responses.input_items.list(streamed.id, limit=2)
        assert page.has_more
        rest = await client.responses.input_items.list(streamed.id, limit=2, after=page.data[-1].id)
        assert [item.id for item in [*page.data, *rest.data]] == [item.id for item in items.data[::-1]]
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(made.id)


async def test_what_is_not_stored_is_not_kept(echo):
    async with sdk(echo) as client:
        made = await client.responses.create(model="echo", input="alpha", store=False)
        assert made.store is False
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="echo", input="beta", previous_response_id=made.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_a_frontend_may_keep_nothing(make_deployment, tmp_path):
    deployment = await make_deployment({"backend": "echo"}, response_store_entries=0)
    await deployment.serves("echo")
    async with sdk(deployment) as client:
        made = await client.responses.create(model="echo", input="alpha")
        assert made.store is False
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
    assert not (tmp_path / "frontend" / "responses.sqlite").exists()


async def test_responses_survive_a_restart_of_the_frontend(make_deployment):
    before = await make_deployment({"backend": "echo"})
    await before.serves("echo")
    async with sdk(before) as client:
        made = await client.responses.create(model="echo", input="alpha")
    await before.stop(before.frontend_runtime)
    after = await make_deployment({"backend": "echo"})
    await after.serves("echo")
    async with sdk(after) as client:
        response = await client.responses.create(model="echo", input="beta", previous_response_id=made.id)
    assert "alpha" in response.output_text


async def test_two_frontends_share_what_is_kept(make_deployment):
    one = await make_deployment({"backend": "echo"})
    other = await make_deployment({"backend": "echo"})
    for deployment in (one, other):
        await deployment.serves("echo")
    async with sdk(one) as first, sdk(other) as second:
        made = await first.responses.create(model="echo", input="alpha")
        events = await collected(
            await second.responses.create(model="echo", input="beta", previous_response_id=made.id, stream=True)
        )
        assert "alpha" in events[-1].response.output_text
        response = await first.responses.create(
            model="echo", input="gamma", previous_response_id=events[-1].response.id
        )
    assert "beta" in response.output_text


async def test_responses_belong_to_the_key_that_made_them(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, api_keys=["key-one", "key-two"])
    await deployment.serves("echo")
    async with sdk(deployment, api_key="key-one") as mine, sdk(deployment, api_key="key-two") as other:
        made = await mine.responses.create(model="echo", input="alpha")
        assert (await mine.responses.retrieve(made.id)).id == made.id
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.delete(made.id)
        with pytest.raises(openai.BadRequestError):
            await other.responses.create(model="echo", input="beta", previous_response_id=made.id)


async def test_an_answer_is_sent_though_it_cannot_be_kept(echo, tmp_path, caplog):
    with contextlib.closing(sqlite3.connect(tmp_path / "frontend" / "responses.sqlite")) as database:
        database.execute("DROP TABLE totals")
        database.commit()
    async with sdk(echo) as client:
        response = await client.responses.create(model="echo", input="alpha")
        assert "alpha" in response.output_text
        assert "is not kept" in caplog.text
        events = await collected(await client.responses.create(model="echo", input="alpha", stream=True))
    assert events[-1].type == "response.completed"


async def test_a_failure_before_the_first_token_is_an_error_response(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--max-model-len", "16"]})
    await deployment.serves("echo")
    async with sdk(deployment) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="echo", input="word " * 100, stream=True)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


async def test_a_failure_in_the_stream_is_an_event(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--fail-after", "3"]}, migration_limit=0)
    await deployment.serves("echo")
    async with sdk(deployment) as client:
        stream = await client.responses.create(model="echo", input="a b c d e f g", stream=True)
        events = await collected(stream)
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2].message
    assert events[-1].response.status == "failed"
    assert events[-1].response.error.code == "server_error"


async def test_items_of_all_kinds_become_one_conversation(echo):
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "dev"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "zzz"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "three", "annotations": []}],
        },
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"x": "four"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "five"}]},
        {"role": "assistant", "content": "six"},
        {"role": "user", "content": "seven"},
    ]
    async with sdk(echo) as client:
        response = await client.responses.create(model="echo", input=items)
        listed = await client.responses.input_items.list(response.id, order="asc")
    words = ("dev", "one", "two", "three", "four", "five", "six", "seven")
    places = [response.output_text.index(word) for word in words]
    assert places == sorted(places)
    assert [item.type for item in listed.data].count("message") == 5
    assert "reasoning" not in [item.type for item in listed.data]
    assert listed.data[2].id == "msg_1"


async def test_a_call_that_was_cut_does_not_spoil_the_conversation(scripted):
    deployment = await scripted('<tool_call>\n{"name": "get_weather", "arguments": {"ci', "hermes")
    async with sdk(deployment) as client:
        first = await client.responses.create(model="echo", input="Weather?", tools=[WEATHER])
        (call,) = first.output
        with pytest.raises(ValueError):
            json.loads(call.arguments)
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "?"}
        second = await client.responses.create(model="echo", input=[output], previous_response_id=first.id)
    assert second.status == "completed"


@pytest.mark.parametrize("tops", [0, 3])
async def test_logprobs_of_texts(demo, tops):
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": tops, "temperature": 0}
    async with sdk(demo) as client:
        response = await client.responses.create(model="demo", input="What is 3 plus 4?", **asked)
        events = await collected(
            await client.responses.create(model="demo", input="What is 3 plus 4?", stream=True, **asked)
        )
        without = await client.responses.create(model="demo", input="What is 3 plus 4?", temperature=0)
    text = response.output[1].content[0]
    assert "".join(entry.token for entry in text.logprobs).strip() == text.text.strip()
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == tops for entry in text.logprobs)
    assert response.top_logprobs == tops
    streamed = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert [entry.token for entry in streamed] == [entry.token for entry in text.logprobs]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert len(done.logprobs) == len(streamed)
    assert events[-1].response.output[1].content[0].logprobs == text.logprobs
    assert without.output[1].content[0].logprobs == []
