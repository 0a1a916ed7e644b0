"""Over HTTP: `x-dynamo-session-id` keeps a session at one worker, `x-dynamo-router` changes the cost of one request."""

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
STORY = "once upon a time in a far away land " * 40


@pytest.fixture
async def start(make_deployment, tmp_path):
    """Four workers behind API keys, decisions explained to everybody."""
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps(KEYS))

    async def make(**router):
        settings = {"router_mode": "kv", "explain": True, "router_use_kv_events": False, "router_seed": 1, **router}
        keys = {"api_key_file": str(file), "rate_limit_store": "memory"}
        deployment = await make_deployment(*[{"backend": "echo"}] * 4, router=settings, **keys)

        def served():
            return sum(len(table) for table in deployment.frontend.models.tables().values()) == 4

        await deployment.until(served)
        return deployment

    return make


async def send(deployment, key, path="/v1/completions", headers=None, **fields):
    body = {"model": "echo", **(fields or {"prompt": STORY})}
    wanted = {"authorization": f"Bearer {key}", "x-dynamo-explain": "1", **(headers or {})}
    return await deployment.client.post(path, json=body, headers=wanted)


async def decision(deployment, key, path="/v1/completions", headers=None, **fields):
    answer = await send(deployment, key, path, headers, **fields)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.headers["x-dynamo-routing"])


async def workers_of(deployment, key, session=None, requests=8):
    """Where requests with nothing in common go."""
    headers = {} if session is None else {"x-dynamo-session-id": session}
    found = []
    for number in range(requests):
        prompt = f"{number} is what {key} said to {session}. " * 40
        found.append((await decision(deployment, key, headers=headers, prompt=prompt))["worker"])
    return found


async def test_a_session_stays_at_one_worker(start):
    deployment = await start(router_session_affinity_ttl_seconds=600.0)
    assert len(set(await workers_of(deployment, ONE))) > 1
    sessions = [await workers_of(deployment, ONE, name, requests=4) for name in "abcdef"]
    assert [len(set(session)) for session in sessions] == [1] * 6
    assert len({session[0] for session in sessions}) > 1


async def test_a_session_goes_on_at_other_endpoints(start):
    deployment = await start(router_session_affinity_ttl_seconds=600.0)
    headers = {"x-dynamo-session-id": "s"}
    found = {
        (await decision(deployment, ONE, headers=headers))["worker"],
        (await decision(deployment, ONE, "/v1/chat/completions", headers, **CHAT))["worker"],
        (await decision(deployment, ONE, "/v1/messages", headers, **CHAT))["worker"],
        (await decision(deployment, ONE, "/v1/responses", headers, input="hello", max_output_tokens=4))["worker"],
    }
    assert len(found) == 1


async def test_nobody_joins_the_session_of_another_key(start):
    deployment = await start(router_session_affinity_ttl_seconds=600.0)
    mine = [await workers_of(deployment, ONE, name, requests=1) for name in "abcdef"]
    assert [await workers_of(deployment, OTHER, name, requests=1) for name in "abcdef"] != mine


async def test_without_the_setting_a_session_means_nothing(start):
    deployment = await start()
    assert len(set(await workers_of(deployment, ONE, "s"))) > 1


async def test_a_session_with_too_long_a_name_is_refused(start):
    deployment = await start()
    answer = await send(deployment, ONE, headers={"x-dynamo-session-id": "s" * 257})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-dynamo-session-id"


def costs(told):
    return {candidate["cost_blocks"] for candidate in told["candidates"]}


async def test_an_admin_brings_parameters_for_one_request(start):
    deployment = await start()
    first = await decision(deployment, ADMIN)
    blind = {"x-dynamo-router": "overlap-score-credit=0, recent-load-tokens=0"}
    assert len(costs(await decision(deployment, ADMIN, headers=blind))) == 1
    again = await decision(deployment, ADMIN)
    assert len(costs(again)) > 1
    assert again["worker"] == first["worker"]


async def test_others_may_not(start):
    deployment = await start()
    asked = {
        "/v1/completions": {"prompt": STORY},
        "/v1/chat/completions": CHAT,
        "/v1/messages": CHAT,
        "/v1/responses": {"input": "hello"},
    }
    for path, fields in asked.items():
        answer = await send(deployment, ONE, path, {"x-dynamo-router": "temperature=1"}, **fields)
        assert answer.status_code == 400, path
        assert "does not take router parameters" in answer.text
        assert "--router-request-overrides" in answer.text


async def test_all_may_where_the_frontend_lets_them(start):
    deployment = await start(router_request_overrides=True)
    blind = {"x-dynamo-router": "overlap-score-credit=0, recent-load-tokens=0"}
    await decision(deployment, ONE)
    assert len(costs(await decision(deployment, ONE, headers=blind))) == 1


async def test_wrong_parameters_are_named(start):
    deployment = await start()
    for text in ("speed=1", "temperature=hot", "temperature=-1", ""):
        answer = await send(deployment, ADMIN, headers={"x-dynamo-router": text})
        assert answer.status_code == 400, text
        assert answer.json()["error"]["param"] == "x-dynamo-router"
        assert "overlap-score-credit" in answer.text


async def test_the_body_may_bring_parameters_as_well(start):
    deployment = await start()
    await decision(deployment, ADMIN)
    blind = {"prompt": STORY, "nvext": {"router": {"overlap_score_credit": 0, "recent_load_tokens": 0}}}
    # Whatever the load of the first request is booked as, its blocks do not count.
    told = await decision(deployment, ADMIN, headers={"x-dynamo-router": "overlap-score-credit=9"}, **blind)
    assert max(costs(told)) - min(costs(told)) <= 1
    for value in (-1, 2e6):
        answer = await send(deployment, ADMIN, prompt=STORY, nvext={"router": {"temperature": value}})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "nvext.router.temperature")
    refused = await send(deployment, ONE, **blind)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "nvext.router")


@pytest.mark.parametrize("router", [{}, {"router_request_overrides": True}, {"router_mode": "direct"}])
async def test_who_may_not_bring_parameters_may_not_choose_the_worker(start, router):
    deployment = await start(**router)
    asked = {"prompt": "hello", "nvext": {"extra_fields": ["worker_id"]}}
    worker = (await send(deployment, ADMIN, **asked)).json()["nvext"]["worker_id"]["decode_worker_id"]
    asked["nvext"]["backend_instance_id"] = worker
    assert (await send(deployment, ADMIN, **asked)).json()["nvext"]["worker_id"]["decode_worker_id"] == worker
    answer = await send(deployment, ONE, **asked)
    if router:
        assert answer.json()["nvext"]["worker_id"]["decode_worker_id"] == worker
    else:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "nvext.backend_instance_id")
        assert "--router-request-overrides" in answer.text
