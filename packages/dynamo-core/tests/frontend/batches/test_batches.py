"""Batches as the openai SDK makes them: all endpoints, answers, errors, ends."""

from __future__ import annotations

import asyncio
import codecs
import json
import time

import msgspec
import openai
import pytest

from dynamo.echo.engine import EchoEngine
from dynamo.protocols.engine import EngineOptions


def content_of(row):
    return row["response"]["body"]["choices"][0]["message"]["content"]


async def test_chats_are_answered_in_their_order(client):
    made = await client.submit([client.line(n) for n in range(20)], metadata={"job": "night"})
    assert (made.object, made.status, made.metadata) == ("batch", "validating", {"job": "night"})
    done = await client.until(made)
    assert (done.status, done.model, done.errors, done.error_file_id) == ("completed", "echo", None, None)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (20, 20, 0)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at < done.expires_at
    rows = await client.rows(done.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"c{n}" for n in range(20)]
    assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in rows)
    assert len({row["id"] for row in rows}) == 20
    assert all(row["response"]["request_id"] == row["id"] for row in rows)
    output = await client.sdk.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{done.id}_output.jsonl")


async def test_each_line_gets_its_own_answer(client):
    texts = [f"word{n} " * 3 for n in range(10)]
    lines = [client.line(n, {"prompt": text, "max_tokens": 30}, "/v1/completions") for n, text in enumerate(texts)]
    done = await client.until(await client.submit(lines, "/v1/completions"))
    rows = await client.rows(done.output_file_id)
    for number, row in enumerate(rows):
        assert f"word{number} " in row["response"]["body"]["choices"][0]["text"]


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/embeddings", {"input": ["a", "b"]}, "list"),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 4}, "response"),
        ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 3, "priority": -5}, "text_completion"),
    ],
)
async def test_other_endpoints(client, endpoint, body, kind):
    done = await client.until(await client.submit([client.line(1, body, endpoint)], endpoint))
    assert done.status == "completed"
    (row,) = await client.rows(done.output_file_id)
    assert row["response"]["body"]["object"] == kind, row


async def test_refused_requests_are_in_the_error_file(client):
    lines = [
        client.line(0),
        client.line(1, {"messages": []}),
        client.line(2),
        client.line(3, {"messages": [{"role": "user", "content": "x"}], "priority": "high"}),
    ]
    done = await client.until(await client.submit(lines))
    assert done.status == "completed"
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 2)
    assert [row["custom_id"] for row in await client.rows(done.output_file_id)] == ["c0", "c2"]
    empty, priority = await client.rows(done.error_file_id)
    assert (empty["custom_id"], empty["error"], empty["response"]["status_code"]) == ("c1", None, 400)
    assert empty["response"]["body"]["error"]["param"] == "messages"
    assert priority["response"]["body"]["error"]["param"] == "priority"


BAD_LINES = {
    "no JSON": (b"{", "invalid_json_line", None),
    "no UTF-8": (b'{"custom_id": "\xff"}', "invalid_json_line", None),
    "no object": (b"[1]", "invalid_request", None),
    "nested deeply": (b"[" * 100_000, "invalid_request", None),
    "no custom_id": (b'{"method": "POST", "url": "/v1/chat/completions", "body": {}}', "invalid_request", None),
    "empty custom_id": ({"custom_id": ""}, "invalid_custom_id", "custom_id"),
    "long custom_id": ({"custom_id": "x" * 257}, "invalid_custom_id", "custom_id"),
    "twice the same custom_id": ({"custom_id": "c0"}, "duplicate_custom_id", "custom_id"),
    "another method": ({"method": "GET"}, "invalid_method", "method"),
    "another url": ({"url": "/v1/embeddings"}, "mismatched_url", "url"),
    "no body": ({"body": None}, "invalid_request", None),
    "no model": ({"body": {"messages": []}}, "missing_model", "body.model"),
    "a model that is no text": ({"body": {"model": 7}}, "missing_model", "body.model"),
    "a stream": ({"body": {"model": "echo", "stream": True}}, "streaming_not_supported", "body.stream"),
}


async def test_a_broken_line_fails_the_batch_by_its_number(client):
    made = {}
    for bad, (line, _, _) in BAD_LINES.items():
        broken = client.line(1, **line) if isinstance(line, dict) else line
        made[bad] = await client.submit([client.line(0), b"", broken, client.line(2)])
    for bad, (_, code, param) in BAD_LINES.items():
        done = await client.until(made[bad])
        assert (bad, done.status, done.output_file_id) == (bad, "failed", None)
        assert done.failed_at >= done.created_at
        (error,) = done.errors.data
        assert (bad, error.line, error.code, error.param) == (bad, 3, code, param)
        assert error.message


async def test_a_file_may_begin_with_the_mark_of_utf_8(client):
    done = await client.until(await client.submit([codecs.BOM_UTF8 + client.line(0), client.line(1)]))
    assert (done.status, done.request_counts.completed) == ("completed", 2)


async def test_errors_of_a_file_that_is_no_batch_are_bounded(client):
    done = await client.until(await client.submit([b"Dear customer,"] * 500))
    assert done.status == "failed"
    assert len(done.errors.data) == 100
    blank = await client.until(await client.submit([b" ", b""]))
    assert [error.code for error in blank.errors.data] == ["empty_file"]


async def test_lines_and_requests_are_bounded(make_deployment, client_of):
    deployment = await make_deployment({"backend": "echo"}, http_body_limit_mib=1, batch_max_requests=3)
    await deployment.serves("echo")
    client = client_of(deployment)
    done = await client.until(await client.submit([client.line(n) for n in range(4)]))
    assert [(error.line, error.code) for error in done.errors.data] == [(4, "too_many_requests")]
    long = client.line(1, {"messages": [{"role": "user", "content": "x" * (3 << 20)}]})
    done = await client.until(await client.submit([client.line(0), long, client.line(2)]))
    assert [(error.line, error.code) for error in done.errors.data] == [(2, "line_too_long")]


BAD_BATCHES = {
    "input_file_id": {"input_file_id": "../../etc/passwd"},
    "endpoint": {"endpoint": "/v1/images/generations"},
    "completion_window": {"completion_window": "tomorrow"},
    "metadata": {"metadata": {str(n): "" for n in range(17)}},
    "output_expires_after.anchor": {"output_expires_after": {"anchor": "x", "seconds": 3600}},
    "output_expires_after.seconds": {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
}


async def test_wrong_batches_are_refused(client):
    file = await client.upload([client.line(0)])
    for param, fields in BAD_BATCHES.items():
        body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.sdk.batches.create(**body)
        assert caught.value.param == param


async def test_batches_are_listed_newest_first(client):
    file = await client.upload([client.line(0)])
    made = [
        await client.sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        for _ in range(5)
    ]
    page = await client.sdk.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [batch.id for batch in reversed(made[3:])]
    assert page.has_more
    assert [batch.id async for batch in await client.sdk.batches.list(limit=2)] == [b.id for b in reversed(made)]
    for wrong in ({"limit": 0}, {"after": "batch_x"}):
        with pytest.raises(openai.BadRequestError):
            await client.sdk.batches.list(**wrong)
    with pytest.raises(openai.NotFoundError):
        await client.sdk.batches.retrieve("batch_x")
    for batch in made:
        assert (await client.until(batch)).status == "completed"


@pytest.fixture
async def slow(make_deployment, client_of):
    """A client of a worker that takes a second per token."""
    deployment = await make_deployment(
        {"backend": "echo", "argv": ["--tokens-per-second", "1"]}, batch_concurrency=4, batch_lease_seconds=1
    )
    await deployment.serves("echo")
    return client_of(deployment), deployment


async def test_a_cancelled_batch_frees_the_engine(slow):
    client, deployment = slow
    lines = [client.line(n) for n in range(50)]
    lines[:2] = [client.line(n, {"messages": []}) for n in range(2)]
    made = await client.submit(lines)
    await deployment.until(lambda: deployment.engines[0]._runs)
    with pytest.raises(openai.ConflictError, match="a batch reads"):
        await client.sdk.files.delete(made.input_file_id)
    asked = await client.sdk.batches.cancel(made.id)
    assert asked.status == "cancelling"
    assert asked.cancelling_at
    done = await client.until(made)
    assert done.status == "cancelled"
    assert done.cancelling_at == asked.cancelling_at
    assert done.cancelled_at
    assert done.request_counts.failed == 2
    assert [row["custom_id"] for row in await client.rows(done.error_file_id)] == ["c0", "c1"]
    await deployment.until(lambda: not deployment.engines[0]._runs)
    with pytest.raises(openai.ConflictError, match="it is cancelled"):
        await client.sdk.batches.cancel(made.id)
    assert (await client.sdk.files.delete(made.input_file_id)).deleted


async def test_what_is_late_expires(slow):
    client, deployment = slow
    lines = [client.line(n) for n in range(10)]
    lines[0] = client.line(0, {"messages": []})
    done = await client.until(await client.submit(lines, window="1s"))
    assert done.status == "expired"
    assert done.expired_at >= done.expires_at
    refused, *late = await client.rows(done.error_file_id)
    assert refused["response"]["status_code"] == 400
    assert [row["error"]["code"] for row in late] == ["batch_expired"] * 9
    assert [row["custom_id"] for row in late] == [f"c{n}" for n in range(1, 10)]
    assert all(row["response"] is None for row in late)
    await deployment.until(lambda: not deployment.engines[0]._runs)


async def test_a_model_that_does_not_exist(make_deployment, client_of):
    deployment = await make_deployment({"backend": "echo"}, batch_model_wait_seconds=0)
    await deployment.serves("echo")
    client = client_of(deployment)
    body = {"model": "other", "messages": [{"role": "user", "content": "x"}]}
    done = await client.until(await client.submit([client.line(0, body), client.line(1)]))
    assert (done.status, done.model) == ("completed", None)
    (row,) = await client.rows(done.error_file_id)
    assert row["response"]["body"]["error"]["code"] == "model_not_found"


async def test_a_new_frontend_waits_for_the_workers(make_deployment, client_of):
    deployment = await make_deployment()
    client = client_of(deployment)
    made = await client.submit([client.line(0)])
    await client.until(made, ("in_progress",))
    await deployment.add_worker("echo")
    assert (await client.until(made)).status == "completed"


async def test_an_overloaded_frontend_is_asked_again(make_deployment, client_of):
    deployment = await make_deployment({"backend": "echo"}, max_inflight_requests=1, batch_concurrency=2)
    await deployment.serves("echo")
    client = client_of(deployment)
    done = await client.until(await client.submit([client.line(n) for n in range(4)]))
    assert (done.request_counts.completed, done.request_counts.failed) == (4, 0)


async def test_a_batch_survives_the_end_of_its_frontend(make_deployment, client_of):
    deployment = await make_deployment({"backend": "echo", "argv": ["--tokens-per-second", "40"]}, batch_concurrency=2)
    await deployment.serves("echo")
    client = client_of(deployment)
    made = await client.submit([client.line(n) for n in range(12)])

    async def some_answers():
        while (await client.sdk.batches.retrieve(made.id)).request_counts.completed < 4:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(some_answers(), 20)
    await deployment.stop(deployment.frontend_runtime)
    await deployment.start_frontend()
    await deployment.serves("echo")
    again = client_of(deployment)
    done = await again.until(made)
    assert done.status == "completed"
    rows = await again.rows(done.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"c{n}" for n in range(12)]


KEYS = """
- {name: ann, key: sk-key-of-ann, requests_per_minute: 30}
- {name: bob, key: sk-key-of-bob, models: [other]}
"""


async def test_files_and_batches_belong_to_their_key(make_deployment, client_of, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    deployment = await make_deployment({"backend": "echo"}, api_key_file=str(keys), batch_model_wait_seconds=0)
    ann, bob = client_of(deployment, "sk-key-of-ann"), client_of(deployment, "sk-key-of-bob")
    stranger = client_of(deployment, "sk-of-nobody")
    with pytest.raises(openai.AuthenticationError):
        await stranger.upload([ann.line(0)])
    # More requests than ann may make in a minute: batches have their own pace.
    made = await ann.submit([ann.line(n) for n in range(50)])
    for call in (
        bob.sdk.batches.retrieve(made.id),
        bob.sdk.batches.cancel(made.id),
        bob.sdk.files.retrieve(made.input_file_id),
        bob.sdk.files.content(made.input_file_id),
        bob.sdk.files.delete(made.input_file_id),
    ):
        with pytest.raises(openai.NotFoundError):
            await call
    assert (await bob.sdk.batches.list()).data == []
    assert (await bob.sdk.files.list()).data == []
    with pytest.raises(openai.BadRequestError, match="there is no file"):
        await bob.sdk.batches.create(
            input_file_id=made.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    done = await ann.until(made)
    assert done.request_counts.completed == 50
    with pytest.raises(openai.NotFoundError):
        await bob.sdk.files.content(done.output_file_id)
    # A batch may use the models of its key, no others.
    refused = await bob.until(await bob.submit([bob.line(0)]))
    (row,) = await bob.rows(refused.error_file_id)
    assert row["response"]["status_code"] == 404


async def test_an_output_is_no_input_and_batches_can_be_switched_off(client, make_deployment, client_of):
    done = await client.until(await client.submit([client.line(0)]))
    with pytest.raises(openai.BadRequestError, match="batch_output"):
        await client.sdk.batches.create(
            input_file_id=done.output_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    without = client_of(await make_deployment(file_store_mib=0))
    with pytest.raises(openai.NotFoundError):
        await without.sdk.batches.list()


class Watched(EchoEngine):
    """Remembers priorities."""

    def __init__(self):
        super().__init__(EngineOptions())
        self.priorities = []

    def generate(self, request, context):
        self.priorities.append(request.priority)
        return super().generate(request, context)


async def test_workers_see_the_lower_priority(make_deployment, client_of):
    deployment = await make_deployment()
    engine = Watched()
    await deployment.add_engine(engine)
    client = client_of(deployment)
    lines = [client.line(0), client.line(1, {"messages": [{"role": "user", "content": "x"}], "priority": 7})]
    await client.until(await client.submit(lines))
    assert sorted(engine.priorities) == [1000, 1007]


class Crowded(EchoEngine):
    """Says that requests wait until it is told otherwise."""

    def __init__(self):
        super().__init__(EngineOptions())
        self.waiting = 1
        self.asked = 0

    def load(self):
        return [msgspec.structs.replace(rank, waiting_requests=self.waiting) for rank in super().load()]

    def generate(self, request, context):
        self.asked += 1
        return super().generate(request, context)


async def test_a_batch_waits_while_requests_wait_at_the_workers(make_deployment, client_of):
    deployment = await make_deployment()
    engine = Crowded()
    await deployment.add_engine(engine)
    await deployment.serves("echo")
    await deployment.until(lambda: deployment.frontend.models.crowded("echo"))
    client = client_of(deployment)
    made = await client.submit([client.line(0)])
    await client.until(made, ("in_progress",))
    live = await client.sdk.completions.create(model="echo", prompt="hello", max_tokens=2)
    assert (live.object, engine.asked) == ("text_completion", 1)
    assert (await client.sdk.batches.retrieve(made.id)).request_counts.completed == 0
    engine.waiting = 0
    assert (await client.until(made)).status == "completed"


async def test_times_are_whole_seconds(client):
    before = int(time.time())
    made = await client.submit(
        [client.line(0)], window="2d", output_expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert before <= made.created_at <= int(time.time())
    assert made.expires_at - made.created_at == 2 * 24 * 3600
    done = await client.until(made)
    output = await client.sdk.files.retrieve(done.output_file_id)
    assert output.expires_at - output.created_at == 7200
    assert json.loads(done.to_json())["completion_window"] == "2d"


async def test_the_batches_of_one_key_do_not_starve_those_of_another(make_deployment, client_of, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: ann, key: sk-key-of-ann}, {name: bob, key: sk-key-of-bob}]")
    deployment = await make_deployment(
        {"backend": "echo", "argv": ["--tokens-per-second", "20"]}, api_key_file=str(keys), batch_concurrency=2
    )
    ann, bob = client_of(deployment, "sk-key-of-ann"), client_of(deployment, "sk-key-of-bob")
    many = [await ann.submit([ann.line(n) for n in range(100)]) for _ in range(6)]
    await deployment.until(lambda: deployment.engines[0]._runs)
    done = await bob.until(await bob.submit([bob.line(n) for n in range(3)]))
    assert done.request_counts.completed == 3
    found = [await ann.sdk.batches.retrieve(batch.id) for batch in many]
    assert all(batch.status in ("validating", "in_progress") for batch in found)
    # They had every other place.
    assert sum(batch.request_counts.completed for batch in found) < 100


@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
async def test_what_has_ended_cannot_be_cancelled(make_deployment, client_of, status):
    deployment = await make_deployment({"backend": "echo", "argv": ["--tokens-per-second", "20"]})
    await deployment.serves("echo")
    client = client_of(deployment)
    line = {"failed": b"no JSON", "expired": client.line(0, {"prompt": "a " * 500}, url="/v1/completions")}
    endpoint = "/v1/completions" if status == "expired" else "/v1/chat/completions"
    made = await client.submit(
        [line.get(status, client.line(0))], endpoint, window="1s" if status == "expired" else "24h"
    )
    made = await client.until(made, (status,))
    with pytest.raises(openai.ConflictError) as refused:
        await client.sdk.batches.cancel(made.id)
    assert refused.value.code == "batch_ended"
    assert (await client.sdk.batches.retrieve(made.id)).status == status
