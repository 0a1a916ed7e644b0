"""Responses are shared by the frontend processes of a machine, and outlive them."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.e2e.processes import deployment

pytestmark = pytest.mark.e2e

TURNS = 10


def whole(frontend, **fields):
    response = httpx.post(f"{frontend.url}/v1/responses", json={"model": "echo", **fields}, timeout=20)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(frontend, **fields):
    """The response as the last event has it."""
    body = {"model": "echo", "stream": True, **fields}
    with httpx.stream("POST", f"{frontend.url}/v1/responses", json=body, timeout=20) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    last = json.loads(lines[-1].removeprefix("data: "))
    assert last["type"] in ("response.completed", "response.incomplete"), last
    return last["response"]


def text(response):
    return response["output"][0]["content"][0]["text"]


def test_a_conversation_wanders_between_frontends_and_survives_their_end(tmp_path):
    with deployment(tmp_path) as processes:
        processes.worker("--max-model-len", "1000000")
        frontends = [processes.frontend(), processes.frontend()]
        for frontend in frontends:
            processes.until_serving(frontend)
        previous = None
        for turn in range(TURNS):
            # The end of an answer is the sign to go on: at the other process at once.
            ask = (whole, streamed)[turn // 2 % 2]
            # The echo engine repeats the conversation: without a limit every turn would double it.
            fields = {"input": f"turn-{turn}", "max_output_tokens": 5}
            made = ask(frontends[turn % 2], previous_response_id=previous, **fields)
            previous = made["id"]
        items = httpx.get(f"{frontends[0].url}/v1/responses/{previous}/input_items?order=asc&limit=100").json()["data"]
        asked = [item["content"][0]["text"] for item in items if item["role"] == "user"]
        assert asked == [f"turn-{turn}" for turn in range(TURNS)]
        for frontend in frontends:
            frontend.kill()
        frontends[0].start()
        processes.until_serving(frontends[0])
        kept = httpx.get(f"{frontends[0].url}/v1/responses/{previous}").json()
        assert kept["id"] == previous
        again = whole(frontends[0], input="last", previous_response_id=previous)
        assert "turn-0" in text(again)
        assert "last" in text(again)
