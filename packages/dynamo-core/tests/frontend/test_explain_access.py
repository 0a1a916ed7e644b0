"""Who is told why a worker was chosen: everybody with --explain, admin keys always, and of one's own requests only."""

from __future__ import annotations

import json

import pytest

ADMIN, ONE, OTHER = "sk-admin-key", "sk-one-key-1", "sk-other-key"
KEYS = [
    {"name": "root", "key": ADMIN, "admin": True},
    {"name": "one", "key": ONE},
    {"name": "other", "key": OTHER},
]
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture
async def start(make_deployment, tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps(KEYS))

    async def make(**router):
        deployment = await make_deployment(
            {"backend": "echo"},
            router={"router_mode": "kv", **router},
            api_key_file=str(file),
            rate_limit_store="memory",
        )

        def served():
            return any(len(table) for table in deployment.frontend.models.tables().values())

        await deployment.until(served)
        return deployment

    return make


async def ask(deployment, key, path="/v1/completions", **fields):
    body = {"model": "echo", **(fields or {"prompt": "once upon a time"})}
    headers = {"authorization": f"Bearer {key}", "x-dynamo-explain": "1"}
    answer = await deployment.client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def pages(deployment, key, path="/debug/routing"):
    return await deployment.client.get(path, headers={"authorization": f"Bearer {key}"})


async def test_without_explain_only_an_admin_is_told(start):
    deployment = await start()
    assert "x-dynamo-routing" not in (await ask(deployment, ONE)).headers
    told = json.loads((await ask(deployment, ADMIN)).headers["x-dynamo-routing"])
    assert told["candidates"][0]["chosen"]
    refused = await pages(deployment, ONE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_required")
    assert (await pages(deployment, ONE, f"/debug/routing/{told['request_id']}")).status_code == 403
    every = (await pages(deployment, ADMIN)).json()
    assert len(every["decisions"]) == 2
    assert (await deployment.client.get("/debug/routing")).status_code == 401


async def test_with_explain_a_key_sees_its_own_requests_only(start):
    deployment = await start(explain=True)
    mine = (await ask(deployment, ONE)).json()["id"]
    theirs = (await ask(deployment, OTHER)).json()["id"]
    listed = (await pages(deployment, ONE)).json()
    assert [decision["request_id"] for decision in listed["decisions"]] == [mine]
    assert "models" not in listed
    assert (await pages(deployment, ONE, f"/debug/routing/{mine}")).status_code == 200
    assert (await pages(deployment, ONE, f"/debug/routing/{theirs}")).status_code == 404
    assert (await pages(deployment, ADMIN, f"/debug/routing/{theirs}")).status_code == 200


async def test_an_admin_sees_what_decisions_came_to(start):
    deployment = await start(router_shadow_modes=["least-loaded", "kv:temperature=1"])
    for number in range(12):
        await ask(deployment, ONE, prompt=f"story {number} " * 20)
    body = (await pages(deployment, ADMIN)).json()
    report = body["models"]["echo"]
    assert report["regret"]["first_tokens"] == 12
    assert report["regret"]["regrets"] == 0  # one worker
    names = [policy["policy"] for policy in report["shadows"]["policies"]]
    assert names == ["live", "least-loaded", "kv:temperature=1"]
    assert all(policy["agreement"] == 1.0 for policy in report["shadows"]["policies"])
    newest = body["decisions"][0]
    assert newest["ttft"]["predicted_seconds"] > 0
    assert newest["ttft"]["regret_seconds"] is None
    assert newest["candidates"][0]["predicted_ttft_seconds"] > 0
    assert newest["candidates"][0]["uncached_tokens"] > 0
    assert newest["queued_seconds"] == 0
    lines = (await deployment.client.get("/metrics")).text
    assert 'dynamo_router_policy_decisions_total{model="echo",policy="live"} 12.0' in lines
    assert 'dynamo_router_policy_agreements_total{model="echo",policy="least-loaded"} 12.0' in lines


async def test_other_endpoints_are_explained_too(start):
    deployment = await start()
    answers = [
        await ask(deployment, ADMIN, "/v1/chat/completions", **CHAT),
        await ask(deployment, ADMIN, "/v1/messages", **CHAT),
        await ask(deployment, ADMIN, "/v1/responses", input="hello", max_output_tokens=4),
    ]
    assert all("x-dynamo-routing" in answer.headers for answer in answers)


async def test_who_asks_in_the_body_is_told_in_the_body(start):
    deployment = await start()
    for number, (path, fields) in enumerate({"/v1/completions": {"prompt": "x"}, "/v1/chat/completions": CHAT}.items()):
        answer = await ask(deployment, ADMIN, path, **fields, nvext={"explain": True})
        body = answer.json()
        assert body["nvext"]["routing"] == json.loads(answer.headers["x-dynamo-routing"])
        assert body["nvext"]["routing"]["request_id"] == body["id"]
        streamed = await ask(deployment, ADMIN, path, **fields, stream=True, nvext={"explain": True})
        chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        assert [chunk["nvext"]["routing"]["request_id"] for chunk in chunks if "nvext" in chunk] == [chunks[0]["id"]]
        # Others are told nothing: their requests are answered as if they had not asked.
        other = (await ask(deployment, ONE, path, **fields, nvext={"explain": True})).json()
        assert other["nvext"] == {}
        assert len((await pages(deployment, ADMIN)).json()["decisions"]) == 3 * (number + 1)


async def test_with_explain_all_may_ask_in_the_body(start):
    deployment = await start(explain=True)
    answer = (await ask(deployment, ONE, prompt="x", n=2, nvext={"explain": True})).json()
    assert answer["nvext"]["routing"]["candidates"][0]["chosen"]
    silent = (await ask(deployment, ONE, prompt="x", nvext={"explain": False})).json()
    assert "nvext" not in silent
