"""API keys on a running frontend: who gets in, what they see, what they pay, and changes of the key file."""

from __future__ import annotations

import json
import stat

import httpx
import openai
import pytest
import yaml

from dynamo.config import load_settings
from dynamo.errors import ConfigError
from dynamo.frontend.security import create_security
from dynamo.frontend.select.settings import SelectSettings
from dynamo.frontend.settings import FrontendSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
ALL, ONLY_ECHO, LIMITED = "sk-all-models", "sk-only-echo", "sk-limited-key"
KEYS = [
    {"name": "all", "key": ALL},
    {"name": "only-echo", "key": ONLY_ECHO, "models": ["echo"]},
    {"name": "limited", "key": LIMITED, "requests_per_minute": 3, "tokens_per_minute": 10_000},
]


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def replace(path, entries):
    """As an operator would: a new file moved over the old one."""
    new = path.with_suffix(".new")
    new.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))
    new.replace(path)


def stop_clock(deployment):
    """Stay in one window, however long the test takes."""
    for identity in deployment.frontend._security._loaded[1].values():
        if identity.budget is not None:
            identity.budget._clock = lambda: 1_000_000.0


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.yaml"
    replace(path, KEYS)
    return path


@pytest.fixture
async def guarded(make_deployment, key_file):
    deployment = await make_deployment(
        {"backend": "echo"},
        {"backend": "echo", "name": "other"},
        api_key_file=str(key_file),
        security_reload_seconds=0.02,
        rate_limit_store="memory",
        access_log=str(key_file.with_name("access.jsonl")),
    )
    await deployment.serves("echo")
    await deployment.serves("other")
    stop_clock(deployment)
    return deployment


async def chat(deployment, key, model="echo", **fields):
    body = {"model": model, "messages": HI, **fields}
    return await deployment.client.post(CHAT, json=body, headers=bearer(key) if key else {})


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, "missing_api_key"), (bearer("sk-wrong-key"), "invalid_api_key"), ({"x-api-key": "no"}, "invalid_api_key")],
)
async def test_without_a_valid_key_nothing_is_served(guarded, headers, code):
    for method, path in [
        *[("POST", path) for path in (CHAT, COMPLETIONS, "/v1/embeddings", "/tokenize", "/detokenize")],
        *[("GET", path) for path in ("/v1/models", "/v1/models/echo", "/v1/models/echo/ready")],
    ]:
        response = await guarded.client.request(method, path, headers=headers)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", code)


async def test_probes_are_open_and_name_nothing(guarded):
    health = await guarded.client.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "healthy"})
    for path in ("/live", "/metrics", "/openapi.json", "/docs"):
        assert (await guarded.client.get(path)).status_code == 200


async def test_metrics_can_ask_for_a_key(make_deployment):
    deployment = await make_deployment(api_keys=[ALL], metrics_auth=True)
    assert (await deployment.client.get("/metrics")).status_code == 401
    assert (await deployment.client.get("/metrics", headers=bearer(ALL))).status_code == 200


async def test_a_valid_key_in_either_header(guarded):
    assert (await chat(guarded, ALL)).status_code == 200
    body = {"model": "echo", "messages": HI}
    assert (await guarded.client.post(CHAT, json=body, headers={"x-api-key": ALL})).status_code == 200


async def test_the_openai_client_sees_an_authentication_error(guarded):
    base_url = f"http://127.0.0.1:{guarded.frontend.server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-wrong-key", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="echo", messages=HI)
    async with openai.AsyncOpenAI(base_url=base_url, api_key=LIMITED, max_retries=0) as client:
        for _ in range(3):
            await client.chat.completions.create(model="echo", messages=HI)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="echo", messages=HI)


async def test_models_of_others_do_not_exist(guarded):
    for response in (
        await chat(guarded, ONLY_ECHO, "other"),
        await guarded.client.get("/v1/models/other", headers=bearer(ONLY_ECHO)),
        await guarded.client.get("/v1/models/other/ready", headers=bearer(ONLY_ECHO)),
        await guarded.client.post("/v1/embeddings", json={"model": "other", "input": "x"}, headers=bearer(ONLY_ECHO)),
        await guarded.client.post("/tokenize", json={"model": "other", "prompt": "x"}, headers=bearer(ONLY_ECHO)),
    ):
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert error["message"] == "the model 'other' does not exist; served: 'echo'"
    assert (await chat(guarded, ONLY_ECHO)).status_code == 200
    assert (await chat(guarded, ALL, "other")).status_code == 200


async def test_the_list_of_models_is_that_of_the_key(guarded):
    async def listed(key):
        response = await guarded.client.get("/v1/models", headers=bearer(key))
        return [model["id"] for model in response.json()["data"]]

    assert await listed(ALL) == ["echo", "other"]
    assert await listed(ONLY_ECHO) == ["echo"]


async def test_the_only_model_of_a_key_needs_no_name(guarded):
    response = await guarded.client.post("/tokenize", json={"prompt": "x"}, headers=bearer(ONLY_ECHO))
    assert response.status_code == 200


async def test_a_model_may_be_allowed_by_its_alias(make_deployment, key_file):
    replace(key_file, [{"name": "a", "key": ALL, "models": ["short"]}])
    deployment = await make_deployment(
        {"backend": "echo", "model_aliases": ["short", "hidden"]}, api_key_file=str(key_file)
    )
    await deployment.until(lambda: "short" in deployment.frontend.models.names())
    assert (await chat(deployment, ALL, "short")).status_code == 200
    assert (await chat(deployment, ALL, "hidden")).status_code == 404
    assert (await chat(deployment, ALL, "echo")).status_code == 404


async def test_requests_are_limited_with_the_headers_that_clients_know(guarded):
    answers = [await chat(guarded, LIMITED, stream=bool(turn % 2)) for turn in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    refused = answers[-1]
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "'limited'" in error["message"]
    models = await guarded.client.get("/v1/models", headers=bearer(LIMITED))
    assert models.status_code == 200
    assert (await chat(guarded, ALL)).headers.get("x-ratelimit-limit-requests") is None


async def test_tokens_are_charged_for_prompt_and_answer(guarded):
    usages = [(await chat(guarded, LIMITED)).json()["usage"]["total_tokens"]]
    embedding = await guarded.client.post(
        "/v1/embeddings", json={"model": "echo", "input": "some words"}, headers=bearer(LIMITED)
    )
    usages.append(embedding.json()["usage"]["total_tokens"])
    last = await chat(guarded, LIMITED)
    assert int(last.headers["x-ratelimit-remaining-tokens"]) == 10_000 - sum(usages)


async def test_a_refused_request_costs_no_tokens(guarded):
    assert (await chat(guarded, LIMITED, temperature=9)).status_code == 400
    answer = await chat(guarded, LIMITED)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "10000"
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"


async def test_two_frontends_of_a_machine_share_the_limit(make_deployment, key_file):
    deployments = [await make_deployment({"backend": "echo"}, api_key_file=str(key_file)) for _ in range(2)]
    for deployment in deployments:
        await deployment.serves("echo")
        stop_clock(deployment)
    statuses = [(await chat(deployments[turn % 2], LIMITED)).status_code for turn in range(5)]
    assert statuses == [200, 200, 200, 429, 429]


async def test_keys_appear_and_vanish_with_the_file(guarded, key_file):
    replace(key_file, [{"name": "new", "key": "sk-new-key-1"}])

    async def status(key):
        return (await guarded.client.get("/v1/models", headers=bearer(key))).status_code

    await guarded.until(lambda: "new" in guarded.frontend._security._loaded[1])
    assert (await status("sk-new-key-1"), await status(ALL)) == (200, 401)
    replace(key_file, "[]")
    await guarded.until(lambda: not guarded.frontend._security._loaded[1])
    assert await status("sk-new-key-1") == 401


async def test_a_bad_new_file_keeps_the_old_keys(guarded, key_file, caplog):
    replace(key_file, "- {name: broken")
    await guarded.until(lambda: "the old one stays in force" in caplog.text)
    assert (await chat(guarded, ALL)).status_code == 200
    key_file.unlink()
    await guarded.until(lambda: "cannot read the API keys" in caplog.text)
    assert (await chat(guarded, ALL)).status_code == 200
    replace(key_file, [{"name": "back", "key": "sk-back-again"}])
    await guarded.until(lambda: "back" in guarded.frontend._security._loaded[1])
    assert (await chat(guarded, ALL)).status_code == 401


async def test_no_key_reaches_a_log(guarded, key_file, caplog):
    await chat(guarded, ALL)
    await chat(guarded, "sk-guessed-key")
    await guarded.close()
    log = key_file.with_name("access.jsonl").read_text()
    assert json.loads(log)["api_key_name"] == "all"
    assert not any(key in log + caplog.text for key in (ALL, "sk-guessed-key"))


async def test_without_keys_everybody_is_served(echo):
    assert (await chat(echo, None)).status_code == 200
    assert (await chat(echo, "sk-anything")).status_code == 200


async def test_keys_on_the_command_line_work_with_a_warning(make_deployment, caplog):
    deployment = await make_deployment({"backend": "echo"}, api_key=[ALL])
    await deployment.serves("echo")
    assert "--api-key-file" in caplog.text
    assert ALL not in caplog.text + repr(deployment.frontend._settings)
    assert (await chat(deployment, ALL)).status_code == 200
    assert (await chat(deployment, None)).status_code == 401


@pytest.mark.parametrize("settings_class", [FrontendSettings, SelectSettings])
@pytest.mark.parametrize("variable", ["DYN_API_KEYS", "DYN_API_KEY"])
def test_the_variable_may_be_called_as_the_flag(settings_class, variable, tmp_path):
    keys = load_settings(settings_class, environ={variable: "sk-of-a-variable"}).api_keys
    security = create_security(FrontendSettings(api_keys=keys, rate_limit_store="memory"), tmp_path)
    assert security is not None
    assert keys == ["sk-of-a-variable"]


def test_a_bad_file_stops_the_start(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the API keys"):
        create_security(FrontendSettings(api_key_file=str(tmp_path / "absent")), tmp_path)
    assert create_security(FrontendSettings(), tmp_path) is None


def test_the_counters_are_for_the_owner_only(tmp_path):
    security = create_security(FrontendSettings(api_keys=[ALL]), tmp_path)
    assert stat.S_IMODE((tmp_path / "frontend").stat().st_mode) == 0o700
    security.close()


async def test_requests_of_one_connection_keep_their_own_identity(guarded):
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=guarded.client.base_url, limits=limits) as client:
        for key, expected in ((ALL, 200), (ONLY_ECHO, 404), (None, 401), (ALL, 200)):
            headers = bearer(key) if key else {}
            assert (await client.get("/v1/models/other", headers=headers)).status_code == expected
