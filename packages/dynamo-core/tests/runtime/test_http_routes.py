"""Routes with a star, and header lines that every response of an exchange gets."""

from __future__ import annotations

import httpx
import pytest

from dynamo.errors import InvalidRequest
from dynamo.runtime.http import HttpServer


@pytest.fixture
async def client():
    server = HttpServer()

    def saying(what):
        return lambda exchange: exchange.respond_json(200, [what, exchange.params])

    server.route("GET", "/models", saying("list"))
    server.route("GET", "/models/*", saying("one"))
    server.route("GET", "/models/*/ready", saying("ready"))
    server.route("DELETE", "/models/*", saying("delete"))
    server.route("GET", "/models/special/*", saying("special"))
    server.route("POST", "/files/*/cancel", saying("cancel"))
    port = await server.listen("127.0.0.1", 0)
    server.route("GET", "/whole", _marked(lambda exchange: exchange.respond_json(200, {})))
    server.route("GET", "/error", _marked(_fail))
    server.route("GET", "/chunks", _marked(_chunks))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as made:
        yield made
    await server.close()


def _marked(handler):
    def handle(exchange):
        exchange.extra_head += b"x-mark: 1\r\n"
        handler(exchange)

    return handle


def _fail(exchange):
    raise InvalidRequest("no")


def _chunks(exchange):
    exchange.start(200, "text/plain")
    exchange.end(b"x")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/models", ["list", ""]),
        ("GET", "/models/a", ["one", "a"]),
        ("GET", "/models/org/a", ["one", "org/a"]),
        ("GET", "/models/org/a/ready", ["ready", "org/a"]),
        ("GET", "/models/ready", ["one", "ready"]),
        ("GET", "/models/special/x", ["special", "x"]),
        ("DELETE", "/models/a/ready", ["delete", "a/ready"]),
        ("POST", "/files/f1/cancel", ["cancel", "f1"]),
    ],
)
async def test_the_longest_pattern_wins(client, method, path, expected):
    assert (await client.request(method, path)).json() == expected


@pytest.mark.parametrize(("method", "path"), [("POST", "/files/cancel"), ("POST", "/files/f1"), ("GET", "/model")])
async def test_what_no_pattern_fits_does_not_exist(client, method, path):
    assert (await client.request(method, path)).status_code == 404


async def test_what_a_pattern_fits_by_another_method_names_the_methods(client):
    answer = await client.put("/models/a")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")


@pytest.mark.parametrize(("path", "status"), [("/whole", 200), ("/error", 400), ("/chunks", 200)])
async def test_extra_header_lines_are_in_every_kind_of_response(client, path, status):
    response = await client.get(path)
    assert (response.status_code, response.headers["x-mark"]) == (status, "1")
