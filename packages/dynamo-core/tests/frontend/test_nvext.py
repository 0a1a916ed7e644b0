"""`nvext` and `--strict`: what clients of NVIDIA Dynamo add to requests, and parameters that nobody knows."""

from __future__ import annotations

import json
import time

import openai
import pytest

from dynamo.echo.engine import EchoEngine
from dynamo.protocols.engine import EngineOptions

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello there"}]


class Watched(EchoEngine):
    """Remembers requests."""

    def __init__(self):
        super().__init__(EngineOptions())
        self.requests = []

    def generate(self, request, context):
        self.requests.append(request)
        return super().generate(request, context)


@pytest.fixture
async def pair(make_deployment):
    """Two workers that remember what they get."""
    deployment = await make_deployment()
    for _ in range(2):
        await deployment.add_engine(Watched())
    await deployment.serves("echo", workers=2)
    return deployment


async def ask(deployment, path=CHAT, status=200, **fields):
    body = {"model": "echo", "max_tokens": 4, **fields}
    body.setdefault("messages" if path == CHAT else "prompt", HELLO if path == CHAT else "hello")
    answer = await deployment.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_client_chooses_the_worker_that_it_was_told(pair):
    told = (await ask(pair, nvext={"extra_fields": ["worker_id", "unknown"]}))["nvext"]
    assert list(told) == ["worker_id"]
    worker = told["worker_id"]["decode_worker_id"]
    chosen = next(engine for engine in pair.engines if engine.requests)
    for path in (CHAT, COMPLETIONS):
        for name in (
            {"backend_instance_id": worker},
            {"backend_instance_id": f"{worker:014x}"},
            {"decode_worker_id": worker},
        ):
            await ask(pair, path, nvext={**name, "dp_rank": 0})
    assert [len(engine.requests) for engine in pair.engines if engine is not chosen] == [0]
    assert len(chosen.requests) == 7
    gone = await ask(pair, status=503, nvext={"backend_instance_id": 12345})
    assert gone["error"]["code"] == "no_instances"
    assert "nvext" not in await ask(pair)


async def test_hints_become_parameters(pair):
    async def sent(**fields):
        for engine in pair.engines:
            engine.requests.clear()
        await ask(pair, **fields)
        (request,) = [request for engine in pair.engines for request in engine.requests]
        return request

    greedy = await sent(temperature=0.9, nvext={"greed_sampling": True})
    assert greedy.sampling.temperature == 0
    assert (await sent(temperature=0.9, nvext={})).sampling.temperature == 0.9
    assert (await sent(nvext={"agent_hints": {"priority": 5, "osl": 100}})).priority == -5
    assert (await sent(priority=3, nvext={"agent_hints": {"priority": 5}})).priority == 3
    for path in (CHAT, COMPLETIONS):
        given = await sent(path=path, nvext={"token_data": [5, 6, 7]})
        assert given.prompt().tolist() == [5, 6, 7]


async def test_timing_and_annotations_come_with_streams(echo):
    nvext = {"extra_fields": ["timing", "worker_id"], "annotations": ["formatted_prompt", "token_ids", "other"]}
    for path, prompt in ((CHAT, {"messages": HELLO}), (COMPLETIONS, {"prompt": "hello there"})):
        body = {"model": "echo", "max_tokens": 4, "stream": True, "nvext": nvext, **prompt}
        text = (await echo.client.post(path, json=body)).text
        first, second, *chunks = [event for event in text.split("\n\n") if event]
        kind, formatted = first.split("\n")
        assert kind == "event: formatted_prompt"
        assert "hello there" in json.loads(formatted.removeprefix(": "))
        kind, ids = second.split("\n")
        assert kind == "event: token_ids"
        tokens = await echo.client.post("/detokenize", json={"model": "echo", "tokens": json.loads(ids[2:])})
        assert "hello there" in tokens.json()["prompt"]
        last = json.loads(chunks[-2].removeprefix("data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        timing = last["nvext"]["timing"]
        assert 0 <= timing["ttft_ms"] <= timing["total_time_ms"]
        assert abs(timing["request_received_ms"] / 1000 - time.time()) < 60
        assert last["nvext"]["worker_id"]["decode_dp_rank"] == 0
        assert not any("nvext" in chunk for chunk in chunks[:-2])
        assert chunks[-1] == "data: [DONE]"


async def test_the_sdk_sends_nvext(echo):
    base = f"http://127.0.0.1:{echo.frontend.server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0) as sdk:
        extra = {"nvext": {"extra_fields": ["worker_id"]}}
        answer = await sdk.chat.completions.create(model="echo", messages=HELLO, max_tokens=2, extra_body=extra)
    assert answer.nvext["worker_id"]["decode_worker_id"] > 0


BAD_NVEXT = {
    "nvext": 3,
    "nvext.greed_sampling": {"greed_sampling": "yes"},
    "nvext.backend_instance_id": {"backend_instance_id": "worker-1"},
    "nvext.dp_rank": {"backend_instance_id": 1, "dp_rank": -1},
    "nvext.token_data": {"token_data": [2**31]},
    "nvext.token_data[0]": {"token_data": ["a"]},
    "nvext.agent_hints.priority": {"agent_hints": {"priority": 2**40}},
    "nvext.agent_hints.strict_priority": {"agent_hints": {"strict_priority": -1}},
    "nvext.annotations": {"annotations": "token_ids"},
}


async def test_wrong_values_are_refused_by_name(echo):
    for param, nvext in BAD_NVEXT.items():
        for path in (CHAT, COMPLETIONS):
            assert (await ask(echo, path, 400, nvext=nvext))["error"]["param"] == param
    for worker in (-1, 2**60, "", "0x12", "1_0"):
        error = (await ask(echo, status=400, nvext={"backend_instance_id": worker}))["error"]
        assert error["param"] == "nvext.backend_instance_id"


UNKNOWN = [
    (CHAT, {"max_token": 3}, "max_token", "'max_tokens'"),
    (CHAT, {"temprature": 1}, "temprature", "'temperature'"),
    (CHAT, {"zzzzzz": 1}, "zzzzzz", None),
    (CHAT, {"nvext": {"annotation": []}}, "nvext.annotation", "'nvext.annotations'"),
    (CHAT, {"nvext": {"agent_hints": {"prio": 1}}}, "nvext.agent_hints.prio", "'nvext.agent_hints.priority'"),
    (COMPLETIONS, {"messages": []}, "messages", None),
    ("/v1/embeddings", {"input": "x", "dimension": 3}, "dimension", "'dimensions'"),
    ("/v1/responses", {"input": "x", "max_tokens": 3}, "max_tokens", "'max_output_tokens'"),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 3, "n": 1}, "n", None),
    ("/v1/messages/count_tokens", {"messages": HELLO, "n": 1}, "n", None),
    ("/tokenize", {"prompt": "x", "add_special_token": False}, "add_special_token", "'add_special_tokens'"),
    ("/detokenize", {"tokens": [1], "zzzzzz": 1}, "zzzzzz", None),
    # Batches have no model of their own.
    (
        "/v1/batches",
        {"input_file_id": "x", "endpoint": "/v1/embeddings", "completion_window": "24h"},
        "model",
        None,
    ),
]


async def test_strict_refuses_unknown_parameters_by_name(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, strict=True)
    await deployment.serves("echo")
    prompts = {CHAT: {"messages": HELLO}, COMPLETIONS: {"prompt": "x"}}
    for path, fields, param, meant in UNKNOWN:
        answer = await deployment.client.post(path, json={"model": "echo", **prompts.get(path, {}), **fields})
        error = answer.json()["error"]
        assert (path, answer.status_code) == (path, 400), error
        assert f"unknown parameter '{param}'" in error["message"]
        if not path.startswith("/v1/messages"):
            assert (error["param"], error["code"]) == (param, "unknown_parameter")
        assert ("did you mean" in error["message"]) == (meant is not None), error
        assert meant is None or meant in error["message"]
    # What the API has and what has no effect here is known all the same.
    await ask(deployment, store=True, metadata={"a": "b"}, service_tier="auto", reasoning_effort="low", nvext={})


async def test_without_strict_they_are_ignored(echo):
    for path, fields, _, _ in UNKNOWN[:6]:
        plain, ignoring = await ask(echo, path), await ask(echo, path, **fields)
        assert ignoring["choices"] == plain["choices"]


async def test_a_prompt_of_ids_beyond_the_context_is_refused_before_it_is_decoded(pair):
    limit = pair.frontend.models.get("echo").context_length_tokens
    for path, fields in (
        (CHAT, {"nvext": {"token_data": [1] * (limit + 1)}}),
        (COMPLETIONS, {"prompt": [1] * (limit + 1)}),
    ):
        error = (await ask(pair, path, status=400, **fields))["error"]
        assert error["code"] == "context_length_exceeded"


async def test_the_name_of_an_unknown_parameter_is_cut(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, strict=True)
    await deployment.serves("echo")
    error = (await ask(deployment, status=400, **{"x" * 1_000_000: 1}))["error"]
    assert (error["code"], len(error["message"]) < 200) == ("unknown_parameter", True)


async def test_engines_see_no_priority_that_the_key_may_not_have(make_deployment, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: team, key: sk-of-team}, {name: gateway, key: sk-of-gateway, admin: true}]")
    deployment = await make_deployment(api_key_file=str(keys))
    engine = Watched()
    await deployment.add_engine(engine)
    await deployment.serves("echo")
    for key, priority in (("sk-of-team", -9), ("sk-of-team", 5), ("sk-of-gateway", -9)):
        headers = {"authorization": f"Bearer {key}"}
        for path, body in (
            (COMPLETIONS, {"prompt": "x", "max_tokens": 1}),
            ("/v1/embeddings", {"input": "x"}),
            ("/v1/responses", {"input": "x", "max_output_tokens": 1}),
        ):
            body = {"model": "echo", "priority": priority, **body}
            answer = await deployment.client.post(path, json=body, headers=headers)
            assert answer.status_code == 200, answer.text
    assert [request.priority for request in engine.requests] == [0] * 3 + [5] * 3 + [-9] * 3
