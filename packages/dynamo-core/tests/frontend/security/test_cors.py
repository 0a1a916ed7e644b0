"""Pages of other origins: preflight, answers and refusals."""

from __future__ import annotations

import pytest

PAGE = "https://chat.example.com"
CHAT = "/v1/chat/completions"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-os",
}


@pytest.fixture
async def open_to_page(make_deployment):
    deployment = await make_deployment({"backend": "echo"}, cors_allow_origins=[PAGE], api_keys=["sk-page-key"])
    await deployment.serves("echo")
    return deployment


async def test_a_preflight_is_answered_without_a_key(open_to_page):
    response = await open_to_page.client.options(CHAT, headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-methods"] == "POST"
    assert response.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    models = await open_to_page.client.options("/v1/models/some/model", headers=PREFLIGHT)
    assert models.headers["access-control-allow-methods"] == "GET"


async def test_a_page_reads_answers_streams_and_refusals(open_to_page):
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"origin": PAGE, "authorization": "Bearer sk-page-key"}
    for fields, status in (({}, 200), ({"stream": True}, 200), ({"n": 0}, 400)):
        response = await open_to_page.client.post(CHAT, json={**body, **fields}, headers=headers)
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == PAGE
        assert response.headers["vary"] == "origin"
        assert "x-ratelimit-remaining-tokens" in response.headers["access-control-expose-headers"]
    refused = await open_to_page.client.post(CHAT, json=body, headers={"origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


@pytest.mark.parametrize(
    "origin", ["https://evil.example.com", "https://chat.example.com.evil.com", "http://chat.example.com", "null", ""]
)
async def test_other_origins_get_nothing(open_to_page, origin):
    for response in (
        await open_to_page.client.options(CHAT, headers={**PREFLIGHT, "origin": origin}),
        await open_to_page.client.get("/live", headers={"origin": origin}),
    ):
        assert "access-control-allow-origin" not in response.headers
        assert "access-control-allow-methods" not in response.headers


async def test_header_names_are_not_reflected_blindly(open_to_page):
    headers = {**PREFLIGHT, "access-control-request-headers": "a<script>, b"}
    response = await open_to_page.client.options(CHAT, headers=headers)
    assert response.headers["access-control-allow-headers"] == "authorization, content-type, x-api-key"


async def test_a_star_is_every_origin(make_deployment):
    deployment = await make_deployment(cors_allow_origins=["*"])
    response = await deployment.client.get("/live", headers={"origin": "https://anywhere.example"})
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


async def test_it_is_off_by_default(echo):
    assert (await echo.client.options(CHAT, headers=PREFLIGHT)).status_code == 405
    assert "access-control-allow-origin" not in (await echo.client.get("/live", headers={"origin": PAGE})).headers
