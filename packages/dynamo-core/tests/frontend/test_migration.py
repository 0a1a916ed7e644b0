"""Streams that lose their worker at awkward moments."""

from __future__ import annotations

import asyncio
import json

import pytest

from dynamo.echo.engine import EchoEngine
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.llm import LLMEngineOutput
from dynamo.router.policy import RouterPolicy
from dynamo.router.settings import RouterSettings

COMPLETIONS = "/v1/completions"
SLOW = {"backend": "echo", "argv": ["--tokens-per-second", "2"]}


def lose_connections(deployment, worker=0):
    for connection in list(deployment._running[worker][0]._plane_server.connections):
        connection._transport.abort()


async def test_a_stream_that_lacks_only_its_end_is_complete(make_deployment):
    deployment = await make_deployment(SLOW)
    await deployment.serves("echo")
    body = {"model": "echo", "prompt": "one two three four", "max_tokens": 1, "stream": True}
    events = []
    async with deployment.client.stream("POST", COMPLETIONS, json=body) as response:
        async for line in response.aiter_lines():
            if not events:
                lose_connections(deployment)
            events += [line.removeprefix("data: ")] if line else []
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert "dynamo_frontend_migrations_total{" not in (await deployment.client.get("/metrics")).text


async def test_a_lone_worker_that_lost_its_connection_goes_on(make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--tokens-per-second", "50"]})
    await deployment.serves("echo")
    prompt = " ".join(f"word{number}" for number in range(20))
    answer = asyncio.create_task(deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": prompt}))
    await deployment.until(lambda: deployment.engines[0]._step >= 5)
    lose_connections(deployment)
    assert (await answer).json()["choices"][0]["text"] == prompt
    assert deployment.engines[0].load()[0].running_requests == 0


async def test_a_request_whose_time_is_up_is_not_sent_to_others(make_deployment):
    deployment = await make_deployment(SLOW, SLOW, request_timeout_seconds=0.2)
    await deployment.serves("echo", workers=2)
    response = await deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": "one two three four five"})
    assert response.status_code == 504
    assert sum(engine._step > 0 for engine in deployment.engines) == 1
    metrics = (await deployment.client.get("/metrics")).text
    assert "dynamo_frontend_migrations_total{" not in metrics


class FirstStreamFails(EchoEngine):
    """Its first stream goes on with `bad` after three tokens."""

    def __init__(self, bad):
        super().__init__(EngineOptions())
        self.bad = bad
        self.streams = 0

    async def generate(self, request, context):
        self.streams += 1
        bad = self.bad if self.streams == 1 else None
        count = 0
        async for output in super().generate(request, context):
            yield output
            count += 1
            if bad is not None and count == 3:
                yield bad
                if bad.finish_reason:
                    return


@pytest.mark.parametrize(
    "bad", [LLMEngineOutput(["no token"]), LLMEngineOutput(finish_reason="cancelled")], ids=["garbage", "given up"]
)
async def test_a_stream_that_goes_wrong_goes_on_without_a_hole(make_deployment, bad):
    deployment = await make_deployment()
    engine = FirstStreamFails(bad)
    await deployment.add_engine(engine)
    await deployment.serves("echo")
    prompt = " ".join(f"word{number}" for number in range(20))
    answer = (await deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": prompt})).json()
    assert answer["choices"][0]["text"] == prompt
    assert engine.streams == 2
    assert engine.load()[0].running_requests == 0
    assert 'dynamo_frontend_migrations_total{model="echo"} 1.0' in (await deployment.client.get("/metrics")).text


class Moody:
    """A picker that decides once."""

    def __init__(self):
        self.decided = 0

    def pick(self, request, candidates, scores):
        self.decided += 1
        if self.decided > 1:
            raise KeyError("a plugin's own mistake")
        return candidates[0]


async def test_a_plugin_that_fails_a_moving_stream_ends_it(make_deployment):
    """Nobody waits for the callback in which it is routed again: the client would wait for ever."""
    deployment = await make_deployment({"backend": "echo", "argv": ["--tokens-per-second", "50"]})
    await deployment.serves("echo")
    table = deployment.frontend.models.get("echo").candidates
    table.configure(RouterPolicy([], [], Moody()), RouterSettings())
    prompt = " ".join(f"word{number}" for number in range(20))
    answer = asyncio.create_task(deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": prompt}))
    await deployment.until(lambda: deployment.engines[0]._step >= 5)
    lose_connections(deployment)
    response = await answer
    assert response.status_code == 500
    assert "mistake" not in response.text
    (candidate,) = table.candidates()
    assert candidate.active_requests == 0
    assert 'dynamo_frontend_inflight_requests{model="echo"} 0.0' in (await deployment.client.get("/metrics")).text


async def test_a_stream_that_moved_gives_the_prompts_logprobs_once(make_deployment):
    deployment = await make_deployment()
    await deployment.add_engine(FirstStreamFails(LLMEngineOutput(finish_reason="cancelled")))
    await deployment.serves("echo")
    prompt = " ".join(f"word{number}" for number in range(20))
    body = {"model": "echo", "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 8}
    answer = (await deployment.client.post(COMPLETIONS, json=body)).json()
    usage = answer["usage"]
    tokens = answer["choices"][0]["logprobs"]["tokens"]
    assert "".join(tokens).replace("<|bos|>", "") == answer["choices"][0]["text"]
    assert len(tokens) == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 'dynamo_frontend_migrations_total{model="echo"} 1.0' in (await deployment.client.get("/metrics")).text
