"""Parsers of plugins that raise: the request ends with an error, and is counted as ended."""

from __future__ import annotations

import json

import pytest

from dynamo.plugins import Registration, plugins
from dynamo.protocols.parsing import ParsedDelta

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
BODY = {"model": "echo", "messages": [{"role": "user", "content": "one two three four five"}], "tools": TOOLS}


class Parser:
    needs_special_tokens = parses_reasoning = False
    tool_markers = ()

    def __init__(self, options):
        self.fed = 0

    def feed(self, text):
        self.fed += 1
        return ParsedDelta(text)

    def finish(self):
        return ParsedDelta()


class FailsWhenMade(Parser):
    def __init__(self, options):
        raise RuntimeError("a plugin's own mistake")


class FailsOnText(Parser):
    def feed(self, text):
        if self.fed == 1:
            raise KeyError("a plugin's own mistake")
        return super().feed(text)


class FailsAtTheEnd(Parser):
    def finish(self):
        raise ValueError("a plugin's own mistake")


class GivesWhatIsNoText(Parser):
    """Found out when the whole answer becomes JSON."""

    def finish(self):
        return ParsedDelta("\ud800")


@pytest.fixture
async def deployment(request, make_deployment, tmp_path):
    """Two workers of a model whose tool calls the class in the test's parameter reads."""
    registry = plugins().tool_call_parsers
    registry.add(Registration("broken", request.param, "test"))
    try:
        worker = {"backend": "echo", "tool_call_parser": "broken", "argv": ["--tokens-per-second", "200"]}
        made = await make_deployment(worker, worker, access_log=str(tmp_path / "access.jsonl"))
        await made.serves("echo", workers=2)
        yield made
    finally:
        del registry._entries["broken"]


ALL = [FailsWhenMade, FailsOnText, FailsAtTheEnd, GivesWhatIsNoText]


@pytest.mark.parametrize("deployment", ALL, indirect=True)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_request_ends_with_an_error_and_is_counted_once(deployment, stream, tmp_path):
    answer = await deployment.client.post(CHAT, json={**BODY, "stream": stream})
    assert "mistake" not in answer.text
    if answer.status_code == 200:
        assert stream
        last = answer.text.strip().splitlines()[-1]
        error = json.loads(last.removeprefix("data: "))["error"]
    else:
        assert answer.status_code == 500
        error = answer.json()["error"]
    assert "internal error" in error["message"]
    metrics = (await deployment.client.get("/metrics")).text
    assert 'dynamo_frontend_inflight_requests{model="echo"} 0.0' in metrics
    assert deployment.frontend._pipeline._metrics.open_requests == 0
    assert "dynamo_frontend_migrations_total{" not in metrics
    ended = [line for line in metrics.splitlines() if line.startswith("dynamo_frontend_requests_total")]
    assert [line.rsplit(" ", 1)[1] for line in ended] == ["1.0"]
    assert 'status="500"' in ended[0]
    await deployment.until(lambda: all(e.load()[0].running_requests == 0 for e in deployment.engines))
    await deployment.stop(deployment.frontend_runtime)
    (line,) = (tmp_path / "access.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == 500


@pytest.mark.parametrize("deployment", [FailsOnText], indirect=True)
async def test_requests_beside_it_are_answered(deployment):
    assert (await deployment.client.post(CHAT, json=BODY)).status_code == 500
    plain = await deployment.client.post(CHAT, json={**BODY, "tool_choice": "none"})
    assert plain.status_code == 200
