"""Malformed requests to files, batches, models, thresholds and routing pages: ids, lists and bodies that are wrong.

What is wrong with a generation's body is in `test_bad_requests.py` and in the tests of its endpoint.
"""

from __future__ import annotations

import json

import pytest

FILE, BATCH, MODEL = "file_id", "batch_id", "model"
LONG = "x" * 5000


def batch(**fields):
    body = {"input_file_id": "file-x", "endpoint": "/v1/completions", "completion_window": "24h", **fields}
    return json.dumps({name: value for name, value in body.items() if value is not None})


def nvext(value):
    return json.dumps({"model": "echo", "prompt": "x", "nvext": value})


def threshold(**fields):
    return json.dumps({"model": "echo", **fields})


#: Method, path, body, then status, code and param of the refusal.
TABLE = [
    ("GET", "/v1/files?limit=0", None, 400, "invalid_request", "limit"),
    ("GET", "/v1/files?limit=x", None, 400, "invalid_request", "limit"),
    ("GET", "/v1/files?limit=10001", None, 400, "invalid_request", "limit"),
    ("GET", "/v1/files?limit=1&limit=x", None, 400, "invalid_request", "limit"),
    ("GET", "/v1/files?order=up", None, 400, "invalid_request", "order"),
    ("GET", "/v1/files?after=none", None, 400, "invalid_request", "after"),
    ("GET", "/v1/files/file-none", None, 404, "not_found", FILE),
    ("GET", "/v1/files/..%2f..%2fetc%2fpasswd", None, 404, "not_found", FILE),
    ("GET", "/v1/files/%00", None, 404, "not_found", FILE),
    ("GET", "/v1/files/%ff", None, 404, "not_found", FILE),
    ("GET", f"/v1/files/{LONG}", None, 404, "not_found", FILE),
    ("GET", "/v1/files/file-none/content", None, 404, "not_found", FILE),
    ("DELETE", "/v1/files/file-none", None, 404, "not_found", FILE),
    ("PUT", "/v1/files", "x", 405, "method_not_allowed", None),
    ("GET", "/v1/batches?limit=0", None, 400, "invalid_request", "limit"),
    ("GET", "/v1/batches?limit=101", None, 400, "invalid_request", "limit"),
    ("GET", "/v1/batches?after=none", None, 400, "invalid_request", "after"),
    ("GET", "/v1/batches/batch_none", None, 404, "not_found", BATCH),
    ("GET", "/v1/batches/..%2fsecret", None, 404, "not_found", BATCH),
    ("POST", "/v1/batches/batch_none/cancel", None, 404, "not_found", BATCH),
    ("POST", "/v1/batches", "{", 400, "invalid_json", None),
    ("POST", "/v1/batches", "[]", 400, "invalid_request", None),
    ("POST", "/v1/batches", "{}", 400, "invalid_request", "input_file_id"),
    ("POST", "/v1/batches", batch(input_file_id=3), 400, "invalid_request", "input_file_id"),
    ("POST", "/v1/batches", batch(), 400, "invalid_request", "input_file_id"),
    ("POST", "/v1/batches", batch(endpoint=None), 400, "invalid_request", "endpoint"),
    ("POST", "/v1/batches", batch(endpoint="/v1/files"), 400, "invalid_request", "endpoint"),
    ("POST", "/v1/batches", batch(completion_window=None), 400, "invalid_request", "completion_window"),
    ("POST", "/v1/batches", batch(completion_window="0h"), 400, "invalid_request", "completion_window"),
    ("POST", "/v1/batches", batch(completion_window="999999d"), 400, "invalid_request", "completion_window"),
    ("POST", "/v1/batches", batch(metadata={"a": 3}), 400, "invalid_request", "metadata[...]"),
    ("POST", "/v1/batches", batch(metadata={"a": LONG}), 400, "invalid_request", "metadata"),
    ("POST", "/v1/batches", batch(output_expires_after=3), 400, "invalid_request", "output_expires_after"),
    ("POST", "/busy_threshold", "{", 400, "invalid_json", None),
    ("POST", "/busy_threshold", threshold(model="none"), 404, "model_not_found", MODEL),
    (
        "POST",
        "/busy_threshold",
        '{"model": "echo", "active_prefill_tokens_threshold": 1e400}',
        400,
        "invalid_request",
        "active_prefill_tokens_threshold",
    ),
    (
        "POST",
        "/busy_threshold",
        threshold(active_decode_blocks_threshold=-1),
        400,
        "invalid_request",
        "active_decode_blocks_threshold",
    ),
    ("DELETE", "/busy_threshold/none", None, 404, "model_not_found", MODEL),
    ("DELETE", "/busy_threshold/", None, 404, "model_not_found", MODEL),
    ("GET", "/v1/models/none", None, 404, "model_not_found", MODEL),
    ("GET", "/v1/models/none/ready", None, 404, "model_not_found", MODEL),
    ("GET", "/v1/models/%ff", None, 404, "model_not_found", MODEL),
    ("GET", "/v1/models/echo:adapter", None, 404, "model_not_found", MODEL),
    ("POST", "/v1/models", "{}", 405, "method_not_allowed", None),
    ("DELETE", "/v1/models/echo", None, 405, "method_not_allowed", None),
    ("GET", "/debug/routing?limit=x", None, 400, "invalid_request", "limit"),
    ("GET", "/debug/routing?limit=-1", None, 400, "invalid_request", "limit"),
    ("GET", "/debug/routing/none", None, 404, "request_not_found", None),
    ("DELETE", "/v1/responses/none", None, 404, "not_found", "response_id"),
    ("GET", "/v1/chat/completions", None, 405, "method_not_allowed", None),
    ("GET", "/v1/nothing", None, 404, "not_found", None),
    ("POST", "/v1/completions", nvext([]), 400, "invalid_request", "nvext"),
    ("POST", "/v1/completions", nvext({"extra_fields": "x"}), 400, "invalid_request", "nvext.extra_fields"),
    ("POST", "/v1/completions", nvext({"extra_fields": [1]}), 400, "invalid_request", "nvext.extra_fields[0]"),
    ("POST", "/v1/completions", nvext({"decode_worker_id": 1.5}), 400, "invalid_request", "nvext.decode_worker_id"),
    ("POST", "/v1/completions", nvext({"token_data": []}), 400, "invalid_request", "nvext.token_data"),
    ("POST", "/v1/completions", nvext({"token_data": [-1]}), 400, "invalid_request", "nvext.token_data"),
    ("POST", "/v1/completions", nvext({"agent_hints": 3}), 400, "invalid_request", "nvext.agent_hints"),
    ("POST", "/v1/completions", nvext({"agent_hints": {"osl": -1}}), 400, "invalid_request", "nvext.agent_hints.osl"),
]


@pytest.fixture
async def explaining(make_deployment):
    """One echo worker behind a frontend that shows its decisions."""
    deployment = await make_deployment({"backend": "echo"}, router={"explain": True})
    await deployment.serves("echo")
    return deployment


async def test_every_row_is_refused_in_the_form_of_openai(explaining):
    wrong = []
    for method, path, body, status, code, param in TABLE:
        response = await explaining.client.request(method, path, content=body)
        error = response.json().get("error", {})
        got = (response.status_code, error.get("type"), error.get("code"), error.get("param"))
        if got != (status, "invalid_request_error", code, param) or not error["message"]:
            wrong.append(f"{method} {path[:80]} {body}: {got}: {error.get('message')}")
    assert not wrong, "\n".join(wrong)
    good = await explaining.client.post("/v1/completions", json={"model": "echo", "prompt": "x"})
    assert good.status_code == 200
