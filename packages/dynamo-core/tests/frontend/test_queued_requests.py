"""Requests that wait in the router: in order, until there is room; clients that leave; overload with Retry-After."""

from __future__ import annotations

import asyncio

import pytest

from dynamo.router.pickers import MaxScore
from dynamo.router.policy import RouterPolicy
from dynamo.router.settings import RouterSettings

COMPLETIONS = "/v1/completions"
QUEUE = {"router_mode": "kv", "router_queue_threshold": 0.0}
#: Every prompt takes as long as the test wants: nothing is computed before somebody lets it.
MOCKER = {
    "backend": "mocker",
    "name": "m",
    "argv": ["--speedup-ratio", "0.02", "--block-size", "16", "--max-num-batched-tokens", "64"],
}
PROMPT = "word " * 300


def completion(**fields):
    return {"model": "m", "prompt": PROMPT, "max_tokens": 2, "ignore_eos": True, **fields}


@pytest.fixture
async def full(make_deployment):
    """A worker with a prompt to compute, which takes it a while; the queue holds everything else."""
    deployment = await make_deployment(MOCKER, router={**QUEUE, "router_queue_max_requests": 2})
    await deployment.serves("m")
    first = asyncio.create_task(deployment.client.post(COMPLETIONS, json=completion()))
    await deployment.until(lambda: waiting_tokens(deployment) > 0)
    yield deployment
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


def queue(deployment):
    return deployment.frontend.models.get("m").candidates.queue


def waiting_tokens(deployment):
    (candidate,) = deployment.frontend.models.get("m").candidates._ordered
    return candidate.waiting_prefill_tokens()


async def test_a_request_waits_for_the_prompt_before_it_and_is_answered(make_deployment):
    fast = {**MOCKER, "argv": [*MOCKER["argv"][2:], "--speedup-ratio", "1"]}
    deployment = await make_deployment(fast, router=QUEUE)
    await deployment.serves("m")
    answers = [asyncio.create_task(deployment.client.post(COMPLETIONS, json=completion(seed=n))) for n in range(6)]
    await deployment.until(lambda: len(queue(deployment)) > 0)
    assert [(await answer).status_code for answer in answers] == [200] * 6
    text = (await deployment.client.get("/metrics")).text
    assert 'dynamo_frontend_router_admission_received_total{model="m"} 6.0' in text
    assert 'dynamo_frontend_router_queue_pending_requests{model="m",tenant=""} 0.0' in text
    (candidate,) = deployment.frontend.models.get("m").candidates._ordered
    assert (candidate.active_requests, len(candidate.kv.active)) == (0, 0)


async def test_a_client_that_leaves_is_not_sent_to_a_worker(full):
    second = asyncio.create_task(full.client.post(COMPLETIONS, json=completion()))
    await full.until(lambda: len(queue(full)) == 1)
    second.cancel()
    await full.until(lambda: len(queue(full)) == 0)
    assert full.engines[0].load()[0].waiting_requests + full.engines[0].load()[0].running_requests == 1


async def test_hints_of_agents_say_who_goes_first(full):
    """A full queue lets go of what comes last: the tier counts more than the priority, and both more than arrival."""
    hints = [{"priority": 9}, {"strict_priority": 1}, {"strict_priority": 1, "priority": -9}]
    bodies = [completion(nvext={"agent_hints": hint}) for hint in hints]
    first, second = (asyncio.create_task(full.client.post(COMPLETIONS, json=body)) for body in bodies[:2])
    await full.until(lambda: len(queue(full)) == 2)
    third = asyncio.create_task(full.client.post(COMPLETIONS, json=bodies[2]))
    assert (await first).json()["error"]["code"] == "queue_share_exceeded"
    assert len(queue(full)) == 2
    for task in (second, third):
        assert not task.done()
        task.cancel()
    await asyncio.gather(second, third, return_exceptions=True)


async def test_beyond_the_bound_the_answer_is_503_with_retry_after(full):
    held = [asyncio.create_task(full.client.post(COMPLETIONS, json=completion())) for _ in range(2)]
    await full.until(lambda: len(queue(full)) == 2)
    refused = await full.client.post(COMPLETIONS, json=completion())
    assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True)
    assert refused.json()["error"]["type"] == "overloaded_error"
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_a_wrong_target_is_a_bad_request(full):
    answer = await full.client.post(COMPLETIONS, json=completion(), headers={"x-dynamo-ttft-target-ms": "now"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-dynamo-ttft-target-ms")


async def test_a_new_worker_takes_who_waits(full):
    second = asyncio.create_task(full.client.post(COMPLETIONS, json=completion()))
    await full.until(lambda: len(queue(full)) == 1)
    await full.add_worker(**MOCKER)
    await full.until(lambda: len(queue(full)) == 0)
    assert not second.done()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


async def test_a_stream_that_moves_does_not_wait_again(make_deployment):
    """Its worker fails in the middle of an answer."""
    echo = {"backend": "echo", "argv": ["--tokens-per-second", "50"]}
    deployment = await make_deployment(router={"router_mode": "kv", "router_queue_threshold": 0.0})
    workers = [await deployment.add_worker(**echo) for _ in range(2)]
    await deployment.serves("echo", workers=2)
    body = {"model": "echo", "prompt": "one two three four five six seven eight nine ten", "max_tokens": 40}
    async with deployment.client.stream("POST", COMPLETIONS, json={**body, "stream": True}) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        busy = next(engine for engine in deployment.engines if engine.load()[0].running_requests)
        await workers[deployment.engines.index(busy)]._plane_server.close()
        text = [line async for line in lines]
    assert text[-2:] == ["data: [DONE]", ""]
    metrics = (await deployment.client.get("/metrics")).text
    assert 'dynamo_frontend_migrations_total{model="echo"} 1.0' in metrics
    assert 'dynamo_frontend_router_admission_received_total{model="echo"} 1.0' in metrics


async def test_a_tenant_that_floods_the_queue_does_not_make_others_wait(make_deployment, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: flood, key: sk-flood-1}, {name: gateway, key: sk-gate-01, admin: true}]")
    worker = {**MOCKER, "argv": [*MOCKER["argv"][2:], "--speedup-ratio", "1"]}
    deployment = await make_deployment(worker, router=QUEUE, api_key_file=str(keys))
    await deployment.serves("m")
    done = []

    async def ask(number, priority, **headers):
        body = completion(seed=number, prompt=f"{number} {PROMPT}", priority=priority)
        answer = await deployment.client.post(COMPLETIONS, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        done.append(headers.get("x-dynamo-tenant", "flood"))

    # The flood wants to be first: its priority and its targets are no help.
    pushy = {"authorization": "Bearer sk-flood-1", "x-dynamo-ttft-target-ms": "1"}
    flood = [asyncio.create_task(ask(n, -9, **pushy)) for n in range(24)]
    await deployment.until(lambda: len(queue(deployment)) >= 20)
    gateway = {"authorization": "Bearer sk-gate-01", "x-dynamo-ttft-target-ms": "60000"}
    others = [asyncio.create_task(ask(100 + n, 0, **gateway, **{"x-dynamo-tenant": f"team-{n}"})) for n in range(3)]
    await asyncio.gather(*others)
    assert done.count("flood") < 20
    await asyncio.gather(*flood)
    text = (await deployment.client.get("/metrics")).text
    assert 'dynamo_frontend_router_queue_pending_requests{model="m",tenant="team-2"} 0.0' in text


async def test_a_frontend_that_goes_down_answers_who_waits_and_ends_what_runs(make_deployment):
    worker = {**MOCKER, "argv": [*MOCKER["argv"][2:], "--speedup-ratio", "1"]}
    deployment = await make_deployment(worker, router=QUEUE, drain_grace_seconds=20)
    await deployment.serves("m")
    first = asyncio.create_task(deployment.client.post(COMPLETIONS, json=completion()))
    await deployment.until(lambda: waiting_tokens(deployment) > 0)
    held = [asyncio.create_task(deployment.client.post(COMPLETIONS, json=completion(seed=n))) for n in range(3)]
    await deployment.until(lambda: len(queue(deployment)) == 3)
    deployment.frontend_runtime.stopping.set()
    for answer in [await task for task in held]:
        assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (503, True)
        assert answer.json()["error"]["code"] == "draining"
    assert (await first).status_code == 200


class Angry:
    """A filter that fails."""

    def filter(self, request, candidates):
        raise KeyError("a plugin's own mistake")


async def test_a_plugin_that_fails_at_the_queue_leaves_no_request_open(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, router=QUEUE)
    await deployment.serves("echo")
    table = deployment.frontend.models.get("echo").candidates
    table.configure(RouterPolicy([Angry()], [], MaxScore()), RouterSettings(**QUEUE))
    body = {"model": "echo", "prompt": "x", "max_tokens": 1, "n": 2}
    answer = await deployment.client.post(COMPLETIONS, json=body)
    assert (answer.status_code, "mistake" in answer.text) == (500, False)
    assert 'dynamo_frontend_inflight_requests{model="echo"} 0.0' in (await deployment.client.get("/metrics")).text
