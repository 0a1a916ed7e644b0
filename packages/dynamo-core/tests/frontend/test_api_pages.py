"""``/openapi.json``, ``/docs``, model readiness, and that every route is in the document and behind its guard."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from dynamo.frontend.openapi import openapi_document
from dynamo.frontend.routes import Access

VOID = {"meta", "br", "hr", "img", "input", "link"}


async def document_of(deployment):
    response = await deployment.client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    return response.json()


def references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


async def test_every_route_of_the_server_is_in_the_document(make_deployment):
    deployment = await make_deployment()
    server, document = deployment.frontend.server, await document_of(deployment)
    served = {(method, path) for path, methods in server._routes.items() for method in methods}
    served |= {(method, f"{prefix}*{suffix}") for method, prefix, suffix, _ in server._patterns}
    described = {
        (method.upper(), re.sub(r"\{\w+\}", "*", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert described == served
    assert ("POST", "/v1/chat/completions") in served


async def test_the_document_is_valid_and_complete(make_deployment):
    document = await document_of(await make_deployment())
    for reference in references(document):
        kind, name = reference.removeprefix("#/components/").split("/")
        assert name in document["components"][kind]
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"].endswith(".") for operation in operations)
    chat = document["components"]["schemas"]["ChatRequest"]
    assert {"model", "messages", "temperature", "stream"} <= set(chat["properties"])
    assert sorted(chat["required"]) == ["messages", "model"]
    specification = pytest.importorskip("openapi_spec_validator", reason="pip install openapi-spec-validator")
    specification.validate(document)


async def test_only_probes_and_documentation_are_open(make_deployment):
    deployment = await make_deployment()
    routes = deployment.frontend._routes()
    opened = {route.path for route in routes if route.access is Access.OPEN}
    assert opened == {"/health", "/live", "/metrics", "/openapi.json", "/docs"}
    document = openapi_document(routes)
    secured = {path for path, methods in document["paths"].items() for o in methods.values() if "security" in o}
    assert secured.isdisjoint(opened)
    assert secured | opened == set(document["paths"])


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a browser would load."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = []
        self.loads = []
        self.anchors = set()
        self.links = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.loads += [tag] if tag in {"script", "img", "link", "iframe"} else []
        self.anchors |= {attributes["id"]} if "id" in attributes else set()
        # A browser opens what a link leads into, not what it leads to.
        assert tag != "details" or "id" not in attributes
        assert "id" not in attributes or "details" in self.open
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


async def test_the_page_shows_every_endpoint_and_loads_nothing(make_deployment):
    deployment = await make_deployment()
    response = await deployment.client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    page = Page()
    page.feed(response.text)
    assert page.open == page.loads == []
    assert "url(" not in response.text
    document = await document_of(deployment)
    assert [path for path in document["paths"] if path not in page.text] == []
    assert "temperature" in page.text
    inner = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert inner <= page.anchors
    assert not {"None", "False"} & set(page.text.replace("\n", " ").split(" "))
    assert "`" not in page.text
    assert [link for link in page.links if not link.startswith("#")] == ["openapi.json"]


async def test_a_model_with_workers_is_ready(make_deployment):
    deployment = await make_deployment({"backend": "echo", "name": "org/model"})
    await deployment.serves("org/model")
    response = await deployment.client.get("/v1/models/org/model/ready")
    assert (response.status_code, response.json()) == (200, {"id": "org/model", "ready": True, "workers": 1})
    assert (await deployment.client.get("/v1/models/org/model")).json()["id"] == "org/model"
    unknown = await deployment.client.get("/v1/models/org/ready")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_model_that_lost_its_workers_is_503_with_retry_after(echo):
    await echo.stop(echo._running[0][0])
    await echo.until(lambda: not echo.frontend.models.names())
    response = await echo.client.get("/v1/models/echo/ready")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert json.loads(response.text)["error"]["code"] == "no_instances"
