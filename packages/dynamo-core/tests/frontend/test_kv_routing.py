"""Mode `kv` in a whole deployment: requests find their prefix, load is booked and released, decisions are explained."""

from __future__ import annotations

import asyncio
import json

import pytest

COMPLETIONS = "/v1/completions"
WORKER = {"backend": "echo"}
PROMPTS = [f"conversation {n}: " + f"sentence number {n} of a long story " * 30 for n in range(6)]


def body(prompt, **fields):
    return {"model": "echo", "prompt": prompt, "max_tokens": 8, **fields}


def state(deployment):
    return deployment.frontend.models.get("echo").candidates._kv


async def ask(deployment, prompt, **fields):
    answer = await deployment.client.post(COMPLETIONS, json=body(prompt, **fields), headers={"x-dynamo-explain": "1"})
    assert answer.status_code == 200, answer.text
    return answer


async def worker_of(deployment, prompt):
    return json.loads((await ask(deployment, prompt)).headers["x-dynamo-routing"])["worker"]


@pytest.fixture
async def four(make_deployment):
    deployment = await make_deployment(*[WORKER] * 4, router={"router_mode": "kv", "explain": True})
    await deployment.serves("echo", workers=4)
    return deployment


async def settled(deployment):
    """Wait until the index has what the engines have."""

    def agree():
        kv = state(deployment)
        indexed = [kv.indexer.index(16).device.blocks_of(worker.slot) for worker in kv._workers.values()]
        return sorted(indexed) == sorted(engine.load()[0].cached_kv_blocks for engine in deployment.engines)

    await deployment.until(agree)


async def test_the_second_turn_goes_where_the_first_went(four):
    first = [await worker_of(four, prompt) for prompt in PROMPTS]
    assert len(set(first)) > 1
    await settled(four)
    assert [await worker_of(four, prompt + " and then") for prompt in PROMPTS] == first


async def test_cached_tokens_are_what_the_router_promised(four):
    await ask(four, PROMPTS[0])
    await settled(four)
    answer = await ask(four, PROMPTS[0])
    won = json.loads(answer.headers["x-dynamo-routing"])["candidates"][0]
    assert won["chosen"]
    cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert won["overlap_blocks"] - 1 <= cached / won["block_size_tokens"] <= won["overlap_blocks"]


async def test_nothing_stays_booked(four):
    await asyncio.gather(*(ask(four, prompt) for prompt in PROMPTS * 3))
    workers = state(four)._workers.values()
    assert [len(worker.active) for worker in workers] == [0] * 4
    assert [worker.active._booked_prefill_tokens for worker in workers] == [0] * 4


async def test_a_worker_that_leaves_leaves_the_index(make_deployment):
    deployment = await make_deployment(router={"router_mode": "kv", "explain": True})
    one = await deployment.add_worker()
    await deployment.serves("echo")
    await ask(deployment, PROMPTS[0])
    await settled(deployment)
    kv = state(deployment)
    assert kv.indexer.blocks() > 0
    await deployment.stop(one)
    await deployment.until(lambda: not kv._workers)
    assert kv.indexer.blocks() == 0


async def test_a_fresh_frontend_knows_what_workers_hold(four):
    first = [await worker_of(four, prompt) for prompt in PROMPTS]
    await settled(four)
    await four.client.aclose()
    await four.start_frontend(router_mode="kv", explain=True)
    await four.serves("echo", workers=4)
    await settled(four)
    assert [await worker_of(four, prompt) for prompt in PROMPTS] == first


async def test_without_events_what_was_routed_is_remembered(make_deployment):
    router = {"router_mode": "kv", "explain": True, "router_use_kv_events": False}
    deployment = await make_deployment(*[WORKER] * 4, router=router)
    await deployment.serves("echo", workers=4)
    first = [await worker_of(deployment, prompt) for prompt in PROMPTS]
    assert [await worker_of(deployment, prompt) for prompt in PROMPTS] == first


async def test_another_salt_shares_nothing(four):
    await ask(four, PROMPTS[0])
    await settled(four)
    answer = await ask(four, PROMPTS[0], cache_salt="tenant-b")
    candidates = json.loads(answer.headers["x-dynamo-routing"])["candidates"]
    assert [candidate["overlap_blocks"] for candidate in candidates] == [0] * 4


async def test_a_decision_can_be_read_later(four):
    answer = await ask(four, PROMPTS[0])
    page = await four.client.get(f"/debug/routing/{answer.json()['id']}")
    (decision,) = page.json()["decisions"]
    told = json.loads(answer.headers["x-dynamo-routing"])
    assert decision == {**told, "ttft": decision["ttft"]}
    assert told["ttft"] is None  # its first token had not come
    assert decision["ttft"]["realised_seconds"] > 0
    assert decision["margin_blocks"] == 0  # four idle workers
    assert len(decision["candidates"]) == 4
    await ask(four, PROMPTS[1])
    last = (await four.client.get("/debug/routing?limit=1")).json()["decisions"]
    assert [d["request_id"] for d in last] != [decision["request_id"]]


async def test_streams_are_explained_too(four):
    headers = {"x-dynamo-explain": "1"}
    request = body(PROMPTS[0], stream=True)
    async with four.client.stream("POST", COMPLETIONS, json=request, headers=headers) as answer:
        assert json.loads(answer.headers["x-dynamo-routing"])["mode"] == "kv"


@pytest.mark.parametrize(("path", "status"), [("/debug/routing/nobody", 404), ("/debug/routing?limit=-1", 400)])
async def test_wrong_questions_are_answered(four, path, status):
    assert (await four.client.get(path)).status_code == status


async def test_who_does_not_ask_is_told_nothing(four):
    answer = await four.client.post(COMPLETIONS, json=body("hello"))
    assert "x-dynamo-routing" not in answer.headers


async def test_without_explain_nothing_is_told(make_deployment):
    deployment = await make_deployment(WORKER, router={"router_mode": "kv"})
    await deployment.serves("echo")
    assert "x-dynamo-routing" not in (await ask(deployment, "hello")).headers
    assert (await deployment.client.get("/debug/routing")).status_code == 404


async def test_metrics_count_hits(four):
    await ask(four, PROMPTS[0])
    await settled(four)
    await ask(four, PROMPTS[0])
    lines = (await four.client.get("/metrics")).text.splitlines()
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line.startswith("dynamo_router")}
    assert values['dynamo_router_decisions_total{model="echo"}'] == 2
    overlap = values['dynamo_router_overlap_blocks_total{model="echo"}']
    assert 0 < overlap < values['dynamo_router_prompt_blocks_total{model="echo"}']
    assert values['dynamo_router_index_blocks{model="echo"}'] >= overlap
    assert values['dynamo_router_kv_events_total{model="echo",outcome="snapshot"}'] == 4
