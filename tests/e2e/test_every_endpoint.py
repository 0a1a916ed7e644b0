"""Every endpoint of `/openapi.json` answers as documented, at a `dynamo serve` with the demo model.

What their parameters do is in `test_every_parameter.py`, and what their answers hold in `test_response_types.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import httpx
import pytest

from tests.e2e.parameter_effects.api import MODEL, OSLO, Api, chat, completions, messages, responses
from tests.e2e.parameter_effects.batches import create, ended, upload
from tests.e2e.served import serving

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "endpoints.md").read_text("utf-8")
Check: TypeAlias = Callable[[Api], None]
CHECKS: dict[str, Check] = {}


def endpoint(*names: str) -> Callable[[Check], Check]:
    """Says which endpoints a check is about."""

    def keep(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(names, check))
        return check

    return keep


@endpoint("POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages")
def answers(api: Api) -> None:
    assert [dialect.ask(api).text for dialect in (chat, responses, messages)] == [OSLO] * 3


@endpoint("POST /v1/completions")
def completion(api: Api) -> None:
    assert completions.ask(api, completions.story, max_tokens=5).tokens == 5


@endpoint("GET /v1/responses/{response}", "GET /v1/responses/{response}/input_items", "DELETE /v1/responses/{response}")
def kept_responses(api: Api) -> None:
    path = f"/v1/responses/{responses.ask(api).body['id']}"
    assert api.get(path)["status"] == "completed"
    assert len(api.get(f"{path}/input_items")["data"]) == 1
    assert api.client.delete(path).json()["deleted"] is True
    for gone in (path, f"{path}/input_items"):
        assert api.client.get(gone).status_code == 404


@endpoint("POST /v1/messages/count_tokens")
def token_count(api: Api) -> None:
    counted = api.post("/v1/messages/count_tokens", **messages.prompt("hello"), system="Be brief.")["input_tokens"]
    answer = messages.ask(api, "hello", system="Be brief.", cache_salt="count", max_tokens=1)
    assert counted == answer.body["usage"]["input_tokens"]


@endpoint("POST /v1/embeddings", "POST /tokenize", "POST /detokenize")
def tokens_and_vectors(api: Api) -> None:
    ids = api.post("/tokenize", prompt="a fox")["tokens"]
    assert api.post("/detokenize", tokens=ids, skip_special_tokens=True)["text"] == "a fox"
    body = api.post("/v1/embeddings", input=ids)
    assert body["usage"]["prompt_tokens"] == len(ids)
    assert sum(x * x for x in body["data"][0]["embedding"]) > 0


@endpoint("GET /v1/files", "POST /v1/files", "GET /v1/files/{file}", "GET /v1/files/{file}/content")
def files(api: Api) -> None:
    made = upload(api)
    assert made in api.get("/v1/files")["data"]
    assert api.get(f"/v1/files/{made['id']}") == made
    assert len(api.client.get(f"/v1/files/{made['id']}/content").content) == made["bytes"]


@endpoint("DELETE /v1/files/{file}")
def deleted_file(api: Api) -> None:
    path = f"/v1/files/{upload(api)['id']}"
    assert api.client.delete(path).json()["deleted"] is True
    assert api.client.get(path).status_code == 404


@endpoint("POST /v1/batches", "GET /v1/batches", "GET /v1/batches/{batch}", "POST /v1/batches/{batch}/cancel")
def batches(api: Api) -> None:
    made = create(api)
    assert made["id"] in [batch["id"] for batch in api.get("/v1/batches")["data"]]
    done = ended(api, made)
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 1)
    # It is at its end, and stays there.
    refused = api.client.post(f"/v1/batches/{made['id']}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "batch_ended")
    running = create(api)
    asked = api.client.post(f"/v1/batches/{running['id']}/cancel")
    # One request may be answered before it is asked to end.
    assert asked.status_code == 409 or asked.json()["status"] in ("cancelling", "finalizing")


@endpoint("GET /v1/models", "GET /v1/models/{model}", "GET /v1/models/{model}/ready")
def models(api: Api) -> None:
    assert [model["id"] for model in api.get("/v1/models")["data"]] == [MODEL]
    assert api.get(f"/v1/models/{MODEL}")["id"] == MODEL
    assert api.client.get(f"/v1/models/{MODEL}/ready").status_code == 200
    for path in ("/v1/models/none", "/v1/models/none/ready"):
        assert api.client.get(path).status_code == 404


@endpoint("GET /busy_threshold", "POST /busy_threshold", "DELETE /busy_threshold/{model}")
def busy_threshold(api: Api) -> None:
    before = api.get("/busy_threshold")["thresholds"]
    assert [entry["model"] for entry in before] == [MODEL]
    assert api.post("/busy_threshold", active_decode_blocks_threshold=0.5)["active_decode_blocks_threshold"] == 0.5
    assert api.client.delete(f"/busy_threshold/{MODEL}").status_code == 200
    assert api.get("/busy_threshold")["thresholds"] == before


@endpoint("GET /debug/routing", "GET /debug/routing/{request_id}")
def decisions(api: Api) -> None:
    answer = chat.ask(api).body["id"]
    (decision,) = api.get(f"/debug/routing/{answer}")["decisions"]
    assert decision == api.get("/debug/routing", limit=1)["decisions"][0]
    assert (decision["model"], len(decision["candidates"])) == (MODEL, 1)


@endpoint("GET /health", "GET /live")
def probes(api: Api) -> None:
    assert (api.get("/health")["status"], api.get("/health")["models"]) == ("healthy", [MODEL])
    assert api.get("/live") == {"status": "live"}


@endpoint("GET /metrics", "GET /openapi.json", "GET /docs")
def pages(api: Api) -> None:
    chat.ask(api)
    assert f'dynamo_frontend_time_to_first_token_seconds_count{{model="{MODEL}"}}' in api.client.get("/metrics").text
    assert api.get("/openapi.json")["openapi"].startswith("3.")
    assert "<html" in api.client.get("/docs").text.lower()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("served"), env={"DYN_ROUTER_EXPLAIN": "true"}) as served:
        made = Api(served.until_ready().url)
        with made.client:
            yield made


@pytest.mark.parametrize("check", list(dict.fromkeys(CHECKS.values())), ids=lambda check: check.__name__)
def test_the_endpoint_answers(check, api):
    check(api)


def test_no_endpoint_is_left_out(api):
    paths = api.get("/openapi.json")["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert served == set(CHECKS)


def test_every_endpoint_is_on_the_reference_page(api):
    table = PAGE.partition("\n## ")[0]
    documented = {re.sub(r"{\w+}", "{}", path) for path in re.findall(r"/[\w./{}]+", table)}
    served = {re.sub(r"{\w+}", "{}", path) for path in api.get("/openapi.json")["paths"]}
    assert served - documented == set()


def test_an_unknown_path_and_method_are_errors_of_openai(api):
    for method, path, status in (("GET", "/v1/nothing", 404), ("DELETE", "/v1/chat/completions", 405)):
        response = httpx.request(method, f"{api.client.base_url}{path}")
        assert (response.status_code, json.loads(response.text)["error"]["type"]) == (status, "invalid_request_error")
