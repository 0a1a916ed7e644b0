"""The request log: what its lines say, and that `dynamo replay` reads them."""

from __future__ import annotations

import asyncio
import json

import pytest

from dynamo.errors import ConfigError
from dynamo.frontend.line_file import QUEUE_BYTES, LineFile
from dynamo.frontend.request_log import RequestLog
from dynamo.replay.traces import ideal_cached_tokens, read_trace

CHAT = "/v1/chat/completions"


async def _lines(deployment, path):
    await asyncio.to_thread(deployment.frontend._request_log.close)
    return [json.loads(line) for line in path.read_text().splitlines()]


def _chat(text, **more):
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **more}


async def test_a_log_is_a_trace_that_replay_reads(make_deployment, tmp_path):
    path = tmp_path / "requests.jsonl"
    deployment = await make_deployment({"backend": "echo"}, request_log=str(path))
    await deployment.serves("echo")
    prefix = "a prefix that both requests share, and which is long enough to fill some blocks of tokens. " * 4
    for text in (prefix + "one", prefix + "two", "something else"):
        response = await deployment.client.post(CHAT, json=_chat(text, max_tokens=5))
        assert response.status_code == 200
        usage = response.json()["usage"]
    lines = await _lines(deployment, path)
    assert [line["output_length"] for line in lines] == [5, 5, 5]
    assert lines[-1]["input_length"] == usage["prompt_tokens"]
    assert lines[0]["hash_ids"][:3] == lines[1]["hash_ids"][:3] != lines[2]["hash_ids"][:3]
    assert all(line["endpoint"] == "chat_completions" and line["finish_reason"] == "length" for line in lines)
    assert all(0 < line["time_to_first_token_ms"] <= line["duration_ms"] for line in lines)

    trace = read_trace(path)
    assert trace.block_size == lines[0]["block_size"]
    assert [request.input_tokens for request in trace.requests] == [line["input_length"] for line in lines]
    assert sum(ideal_cached_tokens(trace)) >= 3 * trace.block_size


async def test_texts_are_written_only_when_asked_for(make_deployment, tmp_path):
    for texts in (False, True):
        path = tmp_path / f"{texts}.jsonl"
        deployment = await make_deployment({"backend": "echo"}, request_log=str(path), request_log_texts=texts)
        await deployment.serves("echo")
        answer = await deployment.client.post(CHAT, json=_chat("the secret word", max_tokens=200))
        [line] = await _lines(deployment, path)
        assert ("the secret word" in path.read_text()) is texts
        if texts:
            assert "the secret word" in line["prompt"]
            assert answer.json()["choices"][0]["message"]["content"] in line["output"]
        assert path.stat().st_mode & 0o077 == 0


async def test_every_choice_and_every_failure_has_a_line(make_deployment, tmp_path):
    path = tmp_path / "requests.jsonl"
    deployment = await make_deployment({"backend": "echo"}, request_log=str(path))
    await deployment.serves("echo")
    await deployment.client.post("/v1/completions", json={"model": "echo", "prompt": ["a", "b"], "n": 2})
    # Refused before it reached a worker: the access log has it, a trace of the engines' work has not.
    refused = await deployment.client.post(CHAT, json={"model": "nobody", "messages": []})
    assert refused.status_code == 400 or refused.status_code == 404
    lines = await _lines(deployment, path)
    assert len(lines) == 4
    assert len({line["request_id"] for line in lines}) == 4
    assert all(line["worker"] for line in lines)


def test_a_request_log_that_cannot_be_opened_names_the_flag(tmp_path):
    with pytest.raises(ConfigError, match="request log") as caught:
        RequestLog(str(tmp_path / "no" / "such" / "file"), texts=False)
    assert "--request-log" in str(caught.value.hint)


def test_what_waits_for_the_disk_is_bounded_in_bytes(tmp_path):
    log = LineFile(str(tmp_path / "lines"), what="test log", param="test_log")
    log.put(lambda: {"n": 1}, QUEUE_BYTES + 1)
    log.put(lambda: {"n": 2}, QUEUE_BYTES)
    log.close()
    assert log.dropped == 1
    assert (tmp_path / "lines").read_text() == '{"n":2}\n'


def test_traces_with_blocks_of_two_sizes_are_refused(tmp_path):
    path = tmp_path / "mixed.jsonl"
    line = {"timestamp": 0, "input_length": 16, "output_length": 1, "hash_ids": [1], "block_size": 16}
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "block_size": 8, "hash_ids": [1, 2]}) + "\n")
    with pytest.raises(ConfigError, match=r"mixed.jsonl:2: blocks of 8 tokens"):
        read_trace(path)


def test_a_line_that_cannot_be_made_does_not_end_the_log(tmp_path, caplog):
    log = LineFile(str(tmp_path / "log"), what="test log", param="access_log")

    def impossible():
        raise OverflowError("no such token")

    log.put(impossible, 10)
    log.put(lambda: {"text": "\ud800"})  # no UTF-8
    log.put(lambda: {"n": 1})
    log.close()
    assert (tmp_path / "log").read_text() == '{"n":1}\n'
    assert (log.dropped, log._waiting_bytes) == (2, 0)
    assert "a line of the test log cannot be made" in caplog.text
