"""`dynamo explain` reads a frontend's page and says what to do when there is none."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from dynamo.cli.explain import explain
from dynamo.errors import CannotConnect, DynamoError, ModelNotFound

CANDIDATE = {
    "worker": "00000000000001",
    "dp_rank": 0,
    "chosen": True,
    "cost_blocks": 9.5,
    "overlap_blocks": 4,
    "new_blocks": 5,
    "uncached_tokens": 36,
    "active_prefill_tokens": 0,
    "active_decode_blocks": 3,
    "active_requests": 1,
    "block_size_tokens": 16,
    "predicted_ttft_seconds": 0.25,
}
DECISION = {
    "request_id": "chatcmpl-1",
    "model": "m",
    "mode": "kv",
    "unix_seconds": 0,
    "prompt_tokens": 100,
    "worker": "00000000000001",
    "dp_rank": 0,
    "margin_blocks": 2.5,
    "queued_seconds": 0.5,
    "ttft": {
        "realised_seconds": 0.3,
        "regret_seconds": 0.05,
        "predicted_seconds": 0.25,
        "predictor_error_seconds": 0.01,
    },
    "candidates": [CANDIDATE, {**CANDIDATE, "worker": "00000000000002", "chosen": False, "cost_blocks": 12}],
}
YOUNG = {
    **DECISION,
    "queued_seconds": 0.0,
    "ttft": None,
    "candidates": [{**CANDIDATE, "predicted_ttft_seconds": None}],
}
PAGES = {
    "/debug/routing/chatcmpl-1": (200, {"decisions": [DECISION]}),
    "/debug/routing/young": (200, {"decisions": [YOUNG]}),
    "/debug/routing/claimed": (200, {"decisions": [{**DECISION, "mode": "random", "chosen_by": "nats"}]}),
    "/debug/routing/gone": (404, {"error": {"code": "request_not_found", "message": "no decision is kept"}}),
    "/debug/routing/a%2Fb": (404, {"error": {"code": "not_found", "message": "there is no such page"}}),
}


@pytest.fixture
def url():
    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = PAGES.get(self.path, (200, None))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode() if body else b"<html>")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run(url, request_id, *flags):
    return CliRunner().invoke(explain, [request_id, "--url", url, *flags], catch_exceptions=True)


def test_the_candidates_are_a_table(url):
    result = run(url, "chatcmpl-1")
    assert result.exit_code == 0
    assert "00000000000001 rank 0, 2.5 blocks ahead of the next" in result.output
    lines = result.output.splitlines()
    assert lines[2] == "waited 500.0 ms in the router's queue"
    assert lines[4].split() == ["*", "00000000000001", "0", "9.5", "4", "5", "36", "0", "3", "1", "250.0", "ms"]
    assert lines[5].split()[:3] == ["00000000000002", "0", "12"]
    assert lines[6] == (
        "first token after 300.0 ms, 250.0 ms predicted; regret 50.0 ms (predictions are off by 10.0 ms)"
    )


def test_what_is_not_known_yet_is_said(url):
    result = run(url, "young")
    assert "no first token was seen" in result.output
    assert "-" in result.output.splitlines()[3]
    assert "queue" not in result.output


def test_json_is_the_page(url):
    assert json.loads(run(url, "chatcmpl-1", "--json").output) == [DECISION]


def test_a_forgotten_request_is_named(url):
    result = run(url, "gone")
    assert isinstance(result.exception, ModelNotFound)
    assert str(result.exception) == "no decision is kept"


def test_without_the_page_the_flag_is_named(url):
    result = run(url, "a/b")
    assert isinstance(result.exception, DynamoError)
    assert "--explain" in result.exception.hint


def test_what_is_no_frontend_is_said_to_be_none(url):
    result = run(url, "other")
    assert isinstance(result.exception, DynamoError)
    assert "no JSON" in result.exception.message


def test_nobody_there():
    error = run("http://127.0.0.1:9", "x").exception
    assert isinstance(error, CannotConnect)
    assert "--url" in error.hint


def test_a_claimed_request_says_who_chose(url):
    assert "chosen by nats: the worker claimed the request" in run(url, "claimed").output
    assert "chosen by" not in run(url, "young").output
