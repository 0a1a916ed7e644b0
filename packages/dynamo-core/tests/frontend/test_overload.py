"""Overload and broken workers: refused early with Retry-After, tried elsewhere, left alone and tried again."""

from __future__ import annotations

import asyncio

import pytest

COMPLETIONS = "/v1/completions"
SLOW = ["--tokens-per-second", "20"]


def completion(**fields):
    return {"model": "echo", "prompt": "one two three four five six seven", "max_tokens": 200, **fields}


async def test_a_full_worker_is_503_with_retry_after(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": SLOW, "engine_request_limit": 1})
    await deployment.serves("echo")
    first = asyncio.create_task(deployment.client.post(COMPLETIONS, json=completion()))
    await deployment.until(lambda: deployment.engines[0].load()[0].running_requests == 1)
    second = await deployment.client.post(COMPLETIONS, json=completion())
    assert second.status_code == 503
    assert int(second.headers["retry-after"]) >= 1
    assert second.json()["error"]["type"] == "overloaded_error"
    assert (await first).status_code == 200


async def test_a_full_worker_hands_over_to_a_free_one(make_deployment):
    full = {"backend": "echo", "argv": SLOW, "engine_request_limit": 1}
    deployment = await make_deployment(full, full)
    await deployment.serves("echo", workers=2)
    answers = await asyncio.gather(*(deployment.client.post(COMPLETIONS, json=completion()) for _ in range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_a_full_frontend_refuses_before_it_reads(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": SLOW}, max_inflight_requests=1)
    await deployment.serves("echo")
    first = asyncio.create_task(deployment.client.post(COMPLETIONS, json=completion()))
    await deployment.until(lambda: deployment.engines[0].load()[0].running_requests == 1)
    refused = await deployment.client.post(COMPLETIONS, content=b"not even JSON")
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    await first
    assert (await deployment.client.post(COMPLETIONS, json=completion(max_tokens=1))).status_code == 200


async def test_workers_above_the_kv_threshold_are_left_out(make_deployment):
    deployment = await make_deployment(
        {"backend": "echo", "argv": [*SLOW, "--num-blocks", "8"]}, router={"active_decode_blocks_threshold": 0.1}
    )
    await deployment.serves("echo")
    first = asyncio.create_task(deployment.client.post(COMPLETIONS, json=completion()))
    table = deployment.frontend.models.get("echo").candidates

    def known_busy():
        (candidate,) = table._ordered
        return candidate.load is not None and candidate.load.used_kv_blocks > 0

    await deployment.until(known_busy)
    refused = await deployment.client.post(COMPLETIONS, json=completion())
    assert refused.status_code == 503
    assert "busy" in refused.json()["error"]["message"]
    await first
    await deployment.until(lambda: not known_busy())
    assert (await deployment.client.post(COMPLETIONS, json=completion(max_tokens=1))).status_code == 200


async def test_an_unreachable_worker_is_left_alone_and_others_serve(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, {"backend": "echo"})
    await deployment.serves("echo", workers=2)
    # The port is closed, the record stays: discovery has not noticed yet.
    broken = deployment._running[0][0]._plane_server
    await broken.close()
    for _ in range(6):
        assert (await deployment.client.post(COMPLETIONS, json=completion())).status_code == 200
    table = deployment.frontend.models.get("echo").candidates
    assert sorted(candidate.breaker.closed for candidate in table._ordered) == [False, True]


async def test_a_canary_finds_an_engine_that_hangs(make_deployment):
    deployment = await make_deployment(
        {
            "backend": "echo",
            "argv": ["--delay-ms", "60000"],
            "canary_interval_seconds": 0.05,
            "canary_timeout_seconds": 0.05,
        }
    )
    worker_runtime = deployment._running[0][0]
    await deployment.until(lambda: "canary" in str(worker_runtime.health.failing().get("engine")))
    assert worker_runtime.health.report()[0] == 503


@pytest.mark.parametrize("interval", [0.02])
async def test_a_canary_leaves_a_good_engine_healthy(make_deployment, interval):
    deployment = await make_deployment({"backend": "echo", "canary_interval_seconds": interval})
    await deployment.serves("echo")
    engine = deployment.engines[0]
    await deployment.until(lambda: engine._step > 2)
    assert deployment._running[0][0].health.report()[0] == 200


async def test_a_router_plugin_that_raises_costs_its_requests_and_nothing_else(make_deployment, caplog):
    class Broken:
        def pick(self, request, candidates, scores):
            raise ZeroDivisionError("a plugin's mistake")

    deployment = await make_deployment({"backend": "echo"})
    await deployment.serves("echo")
    policy = deployment.frontend.models.get("echo").candidates._policy
    good, policy._picker = policy._picker, Broken()
    failed = await deployment.client.post(COMPLETIONS, json=completion())
    assert failed.status_code == 500
    assert "mistake" not in failed.text
    policy._picker = good
    assert (await deployment.client.post(COMPLETIONS, json=completion(max_tokens=1))).status_code == 200
    assert 'dynamo_frontend_inflight_requests{model="echo"} 0.0' in (await deployment.client.get("/metrics")).text
