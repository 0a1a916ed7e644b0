"""`dynamo serve --frontends 2`: one port, one state, one limit per API key; it goes on when one of them dies."""

from __future__ import annotations

import contextlib
import json
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.e2e

KEYS = """
- {name: unlimited, key: sk-unlimited-key}
- {name: limited-0, key: sk-limited-key-0, requests_per_minute: 8}
- {name: limited-1, key: sk-limited-key-1, requests_per_minute: 8}
- {name: thrifty-0, key: sk-thrifty-key-0, tokens_per_minute: 80}
- {name: thrifty-1, key: sk-thrifty-key-1, tokens_per_minute: 80}
"""
BODY = {"model": "echo", "prompt": "hello", "max_tokens": 2}


def ask(served, key):
    """One completion over a connection of its own, which any of the frontends may get."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{served.url}/v1/completions", json=BODY, headers=headers, timeout=20)


def statuses_within_a_minute(served, keys):
    """Of 40 requests with a key of this kind; with another one if a minute ended meanwhile."""
    for number in range(2):
        minute = time.time() // 60
        statuses = [ask(served, f"sk-{keys}-key-{number}").status_code for _ in range(40)]
        if time.time() // 60 == minute:
            return statuses
    return pytest.fail("40 requests took a minute")


def test_two_frontends_share_a_port_and_the_limits_of_api_keys(serve, tmp_path):
    (tmp_path / "keys.yaml").write_text(KEYS)
    environment = {"DYN_API_KEY_FILE": str(tmp_path / "keys.yaml")}
    served = serve("--backend", "echo", "--frontends", "2", env=environment)
    served.until_ready()
    assert httpx.get(f"{served.url}/v1/models").status_code == 401

    def served_by_all():
        return all(ask(served, "sk-unlimited-key").status_code == 200 for _ in range(10))

    # Ready means: the model at both frontends.
    assert served_by_all()
    statuses = statuses_within_a_minute(served, "limited")
    assert (statuses.count(200), statuses.count(429)) == (8, 32)
    cost = ask(served, "sk-unlimited-key").json()["usage"]["total_tokens"]
    statuses = statuses_within_a_minute(served, "thrifty")
    # The last one may go beyond the limit; two limits would let twice as many through.
    assert 80 <= statuses.count(200) * cost < 80 + 2 * cost
    frontends = served.workers("dynamo.frontend")
    assert len(frontends) == 2
    frontends[0].kill()

    def answers_again():
        with contextlib.suppress(httpx.HTTPError):
            return ask(served, "sk-unlimited-key").status_code == 200

    served.until(answers_again, "the other frontend")
    served.until(lambda: len(served.workers("dynamo.frontend")) == 2, "a new frontend")
    served.until(served_by_all, "the model at both frontends again")


ROUNDS = 12


def test_what_one_frontend_keeps_all_of_them_have(serve):
    served = serve("--backend", "echo", "--frontends", "2").until_ready()

    def call(method, path, **options):
        """Over a connection of its own, so that each of the frontends gets some."""
        response = httpx.request(method, f"{served.url}{path}", timeout=20, **options)
        assert response.status_code == 200, response.text
        return response

    def each(method, path):
        return [call(method, path) for _ in range(ROUNDS)]

    served.until(
        lambda: all(httpx.get(f"{served.url}/v1/models").json()["data"] for _ in range(ROUNDS)), "the model at both"
    )
    made = call("POST", "/v1/responses", json={"model": "echo", "input": "hello", "max_output_tokens": 4}).json()
    assert {answer.json()["id"] for answer in each("GET", f"/v1/responses/{made['id']}")} == {made["id"]}

    onward = {"model": "echo", "input": "and?", "max_output_tokens": 4, "previous_response_id": made["id"]}
    answers = [call("POST", "/v1/responses", json={**onward, "store": False}).json() for _ in range(ROUNDS)]
    # All have read the whole conversation.
    assert len({answer["usage"]["input_tokens"] for answer in answers}) == 1
    call("DELETE", f"/v1/responses/{made['id']}")
    gone = [httpx.get(f"{served.url}/v1/responses/{made['id']}", timeout=20).status_code for _ in range(ROUNDS)]
    assert set(gone) == {404}

    body = {"model": "echo", "prompt": "hello", "max_tokens": 2}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}).encode()
    file = call("POST", "/v1/files", files={"file": ("f", line)}, data={"purpose": "batch"}).json()
    assert {answer.content for answer in each("GET", f"/v1/files/{file['id']}/content")} == {line}

    wanted = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = f"/v1/batches/{call('POST', '/v1/batches', json=wanted).json()['id']}"
    served.until(lambda: call("GET", batch).json()["status"] == "completed", "the batch")
    outputs = {answer.json()["output_file_id"] for answer in each("GET", batch)}
    assert len(outputs) == 1
    assert len({answer.content for answer in each("GET", f"/v1/files/{outputs.pop()}/content")}) == 1

    def counted():
        """Completions that each of the frontends counts over both."""
        found = set()
        for answer in each("GET", "/metrics"):
            families = text_string_to_metric_families(answer.text)
            samples = [s for family in families for s in family.samples if s.name == "dynamo_frontend_requests_total"]
            found.add(sum(s.value for s in samples if s.labels["endpoint"] == "completions"))
        return found

    served.until(lambda: counted() == {1}, "the batch's request in the metrics of both")
    for _ in range(ROUNDS):
        call("POST", "/v1/completions", json=body)
    served.until(lambda: counted() == {1 + ROUNDS}, "all requests in the metrics of both")
    served.workers("dynamo.frontend")[0].kill()
    served.until(lambda: counted() == {1 + ROUNDS}, "the dead one's counts at the other")
