"""The page by which `dynamo serve` knows that a model is there, and who may see it."""

from __future__ import annotations

import httpx

from dynamo.frontend.serving_page import ServingPage
from dynamo.frontend.settings import FrontendSettings
from dynamo.runtime.http import HttpServer
from dynamo.runtime.system_access import SystemAccess


async def page(deployment, access: SystemAccess, headers=None) -> httpx.Response:
    settings = FrontendSettings(tls_cert_path="tls.crt")
    server = HttpServer()
    ServingPage(deployment.frontend.models, settings, access, asks_for_key=True).install(server)
    port = await server.listen("127.0.0.1", 0)
    async with httpx.AsyncClient(timeout=20) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/serving", headers=headers)
    await server.close()
    return answer


async def test_models_and_what_clients_need(echo):
    answer = await page(echo, SystemAccess("127.0.0.1", b""))
    assert answer.json() == {"tls": True, "client_certificate": False, "api_key": True, "models": ["echo"]}


async def test_other_machines_need_the_secret(echo):
    access = SystemAccess("0.0.0.0", b"secret")
    refused = await page(echo, access)
    assert refused.status_code == 401
    assert "echo" not in refused.text
    assert (await page(echo, access, {"authorization": "Bearer secret"})).json()["models"] == ["echo"]


async def test_a_frontend_without_models_says_none(make_deployment):
    deployment = await make_deployment()
    assert (await page(deployment, SystemAccess("127.0.0.1", b""))).json()["models"] == []
