"""Right answers, whole and streamed, through the whole path: HTTP, template, tokens, worker, detokenizer, events."""

from __future__ import annotations

import asyncio
import json

import pytest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
NORWAY = [{"role": "user", "content": "What is the capital of Norway?"}]


async def events(client, path, body):
    """Every ``data:`` event of a streamed response, decoded; the end mark as the string itself."""
    async with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        found = []
        async for line in response.aiter_lines():
            if line:
                assert line.startswith("data: ")
                data = line.removeprefix("data: ")
                found.append(data if data == "[DONE]" else json.loads(data))
        return found


def text_of(chunks, index=0):
    parts = []
    for chunk in chunks:
        if chunk == "[DONE]":
            continue
        for choice in chunk["choices"]:
            if choice["index"] == index:
                parts.append(choice["delta"].get("content", "") if "delta" in choice else choice["text"])
    return "".join(parts)


async def test_a_chat_answer_of_a_real_model(demo):
    response = await demo.client.post(CHAT, json={"model": "demo", "messages": NORWAY, "temperature": 0})
    body = response.json()
    choice = body["choices"][0]
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert "Oslo" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] > 0


async def test_the_stream_says_the_same(demo):
    body = {"model": "demo", "messages": NORWAY, "temperature": 0}
    whole = (await demo.client.post(CHAT, json=body)).json()
    chunks = await events(demo.client, CHAT, {**body, "stream_options": {"include_usage": True}})
    assert chunks[-1] == "[DONE]"
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks[:-2])
    assert {chunk["object"] for chunk in chunks[:-1]} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1


async def test_a_second_turn_reuses_the_cache(demo):
    long = [{"role": "user", "content": "Tell me a story about a fox and an owl who live near the river. " * 4}]
    first = (await demo.client.post(CHAT, json={"model": "demo", "messages": long, "max_tokens": 4})).json()
    again = (await demo.client.post(CHAT, json={"model": "demo", "messages": long, "max_tokens": 4})).json()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16


async def test_max_tokens_ends_with_length(demo):
    body = {"model": "demo", "messages": NORWAY, "temperature": 0, "max_tokens": 2}
    answer = (await demo.client.post(CHAT, json=body)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stop", ["Norway", ["xyz", "of Nor"]])
async def test_a_stop_string_cuts_text_and_usage(demo, stop):
    body = {"model": "demo", "messages": NORWAY, "temperature": 0}
    whole = (await demo.client.post(CHAT, json=body)).json()
    cut = (await demo.client.post(CHAT, json={**body, "stop": stop})).json()
    expected = whole["choices"][0]["message"]["content"].split("Norway" if stop == "Norway" else "of Nor")[0]
    assert cut["choices"][0]["message"]["content"] == expected
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    chunks = await events(demo.client, CHAT, {**body, "stop": stop})
    assert text_of(chunks) == expected
    assert chunks[-1] == "[DONE]"


async def test_a_stop_string_frees_the_engine(demo):
    body = {"model": "demo", "messages": [{"role": "user", "content": "Tell me a story about a fox."}], "stop": "e"}
    await demo.client.post(CHAT, json=body)
    await demo.until(lambda: demo.engines[0].load()[0].running_requests == 0)
    assert demo.engines[0].load()[0].used_kv_blocks == 0


async def test_several_choices_and_prompts_are_numbered(echo):
    body = {"model": "echo", "prompt": ["one", "two"], "n": 2, "max_tokens": 50}
    answer = (await echo.client.post(COMPLETIONS, json=body)).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "one"), (1, "one"), (2, "two"), (3, "two")]
    single = (await echo.client.post(COMPLETIONS, json={**body, "n": 1})).json()
    assert answer["usage"]["prompt_tokens"] == single["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 2 * single["usage"]["completion_tokens"]
    chunks = await events(echo.client, COMPLETIONS, body)
    assert [text_of(chunks, index) for index in range(4)] == ["one", "one", "two", "two"]


async def test_seeded_choices_differ_and_repeat(demo):
    body = {"model": "demo", "messages": [{"role": "user", "content": "Tell me a story about a fox."}], "n": 3}
    body.update(temperature=1.5, seed=7, max_tokens=12)
    first, again = [(await demo.client.post(CHAT, json=body)).json()["choices"] for _ in range(2)]
    texts = [choice["message"]["content"] for choice in first]
    assert texts == [choice["message"]["content"] for choice in again]
    assert len(set(texts)) > 1


async def test_completions_take_token_ids_and_echo(echo):
    tokenizer = echo.frontend.models.get("echo").text.tokenizer
    ids = tokenizer.encode("a small fox").tolist()
    answer = (await echo.client.post(COMPLETIONS, json={"model": "echo", "prompt": ids, "echo": True})).json()
    assert answer["choices"][0]["text"] == "a small foxa small fox"
    assert answer["usage"]["prompt_tokens"] == len(ids)
    chunks = await events(echo.client, COMPLETIONS, {"model": "echo", "prompt": ids, "echo": True})
    assert text_of(chunks) == "a small foxa small fox"


@pytest.mark.parametrize("text", ["Grüße, 世界! 👩‍🚀🇳🇴", "naïve — “quotes” … \t\n", "\u200b\ufeff end", "🙂" * 40])
async def test_any_text_comes_back_whole_and_streamed(echo, text):
    answer = (await echo.client.post(COMPLETIONS, json={"model": "echo", "prompt": text, "max_tokens": 4000})).json()
    assert answer["choices"][0]["text"] == text
    chunks = await events(echo.client, COMPLETIONS, {"model": "echo", "prompt": text, "max_tokens": 4000})
    assert text_of(chunks) == text


async def test_chat_logprobs(demo):
    body = {"model": "demo", "messages": NORWAY, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    answer = (await demo.client.post(CHAT, json=body)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    for entry in content:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
        assert bytes(entry["bytes"]).decode(errors="replace") == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == pytest.approx(entry["logprob"], abs=1e-5)
    chunks = await events(demo.client, CHAT, body)
    streamed = [e for c in chunks[:-1] for ch in c["choices"] if ch["logprobs"] for e in ch["logprobs"]["content"]]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in content]


async def test_completion_logprobs_with_echo(demo):
    body = {
        "model": "demo",
        "prompt": "Once upon a time",
        "max_tokens": 3,
        "temperature": 0,
        "logprobs": 2,
        "echo": True,
    }
    choice = (await demo.client.post(COMPLETIONS, json=body)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert len({len(logprobs[key]) for key in logprobs}) == 1
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


async def test_a_client_that_leaves_frees_the_engine(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--delay-ms", "5", "--tokens-per-second", "50"]})
    await deployment.serves("echo")
    body = {"model": "echo", "prompt": "word " * 500, "max_tokens": 2000, "stream": True}
    async with deployment.client.stream("POST", COMPLETIONS, json=body) as response:
        async for _ in response.aiter_lines():
            break
        assert deployment.engines[0].load()[0].running_requests == 1
    await deployment.until(lambda: deployment.engines[0].load()[0].running_requests == 0)
    assert deployment.engines[0].load()[0].used_kv_blocks == 0
    text = (await deployment.client.get("/metrics")).text
    assert 'dynamo_frontend_cancellations_total{model="echo"} 1.0' in text
    assert 'dynamo_frontend_inflight_requests{model="echo"} 0.0' in text


async def test_round_robin_spreads_over_workers(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, {"backend": "echo"})
    await deployment.serves("echo", workers=2)
    for _ in range(4):
        await deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": "hi"})
    candidates = deployment.frontend.models.get("echo").candidates
    assert [candidate.active_requests for candidate in candidates._ordered] == [0, 0]
    assert [engine._step for engine in deployment.engines] == [engine._step for engine in deployment.engines][::-1]
    assert deployment.engines[0]._step > 0


async def test_a_stream_goes_on_when_its_worker_is_lost(make_deployment):
    pace = ["--tokens-per-second", "200"]
    deployment = await make_deployment({"backend": "echo", "argv": pace}, {"backend": "echo", "argv": pace})
    await deployment.serves("echo", workers=2)
    prompt = " ".join(f"word{number}" for number in range(60))
    body = {"model": "echo", "prompt": prompt, "max_tokens": 2000, "stream_options": {"include_usage": True}}

    async def lose_one_worker():
        await deployment.until(lambda: any(engine._step > 20 for engine in deployment.engines))
        busy = next(i for i, engine in enumerate(deployment.engines) if engine.load()[0].running_requests)
        server = deployment._running[busy][0]._plane_server
        for connection in list(server.connections):
            connection._transport.abort()

    chunks, _ = await asyncio.gather(events(deployment.client, COMPLETIONS, body), lose_one_worker())
    assert text_of(chunks) == prompt
    tokens = deployment.frontend.models.get("echo").text.tokenizer.encode(prompt, add_special_tokens=True)
    assert chunks[-2]["usage"]["completion_tokens"] == len(tokens)
    assert chunks[-2]["usage"]["prompt_tokens"] == len(tokens)
    metrics = (await deployment.client.get("/metrics")).text
    assert 'dynamo_frontend_migrations_total{model="echo"} 1.0' in metrics


async def test_a_stream_waits_for_a_worker_when_it_lost_its_only_one(make_deployment):
    pace = ["--tokens-per-second", "200"]
    deployment = await make_deployment({"backend": "echo", "argv": pace})
    await deployment.serves("echo")
    prompt = " ".join(f"word{number}" for number in range(60))
    only = deployment._running[0][0]

    async def replace_the_worker():
        await deployment.until(lambda: deployment.engines[0]._step > 20)
        await deployment.stop(only)
        await deployment.add_worker("echo", argv=pace)

    body = {"model": "echo", "prompt": prompt, "max_tokens": 2000}
    chunks, _ = await asyncio.gather(events(deployment.client, COMPLETIONS, body), replace_the_worker())
    assert text_of(chunks) == prompt
    assert chunks[-1] == "[DONE]"


async def test_an_engine_error_in_a_stream_is_an_event_without_done(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--fail-after", "3"]})
    await deployment.serves("echo")
    body = {"model": "echo", "prompt": "one two three four five six", "max_tokens": 50}
    chunks = await events(deployment.client, COMPLETIONS, body)
    assert chunks[-1]["error"]["type"] == "server_error"
    assert "fails after 3 tokens" in chunks[-1]["error"]["message"]
    assert "[DONE]" not in chunks
    whole = await deployment.client.post(COMPLETIONS, json=body)
    assert whole.status_code == 500
    assert whole.json()["error"]["code"] == "engine_error"


async def test_models_health_and_metrics(demo):
    models = (await demo.client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["demo"]
    one = await demo.client.get("/v1/models/demo")
    assert one.json()["max_model_len"] >= 1024
    assert (await demo.client.get("/v1/models/none")).status_code == 404
    health = (await demo.client.get("/health")).json()
    assert (health["status"], health["models"]) == ("healthy", ["demo"])
    assert len(health["instances"]) == 1
    await demo.client.post(CHAT, json={"model": "demo", "messages": NORWAY})
    text = (await demo.client.get("/metrics")).text
    assert 'dynamo_frontend_requests_total{endpoint="chat_completions",error_type="",model="demo"' in text
    assert 'dynamo_frontend_time_to_first_token_seconds_count{model="demo"} 1.0' in text


async def test_aliases_name_the_same_model(make_deployment):
    deployment = await make_deployment({"backend": "echo", "model_aliases": ["parrot"]})
    await deployment.serves("parrot")
    answer = (await deployment.client.post(COMPLETIONS, json={"model": "parrot", "prompt": "hi"})).json()
    assert (answer["model"], answer["choices"][0]["text"]) == ("parrot", "hi")


async def test_the_request_id_of_the_client_is_kept(echo):
    headers = {"x-request-id": "order-66"}
    for more, status in (({}, 200), ({"stream": True}, 200), ({"max_tokens": -1}, 400)):
        response = await echo.client.post(COMPLETIONS, json={"model": "echo", "prompt": "hi", **more}, headers=headers)
        told = response.headers["x-request-id"]
        assert (response.status_code, told.startswith("order-66-")) == (status, True)
        # A refusal has no id of its own in the body.
        assert (f'"cmpl-{told}"' in response.text) == (status == 200)


async def test_a_long_prompt_is_tokenized_beside_the_event_loop(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--max-model-len", "20000"]})
    await deployment.serves("echo")
    text = "a small fox " * 1000
    answer = (
        await deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": text, "max_tokens": 9000})
    ).json()
    assert answer["choices"][0]["text"] == text
