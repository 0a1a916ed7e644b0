"""Batches go on when their frontend is killed: at another process, or when it is started again."""

from __future__ import annotations

import json

import openai
import pytest

from tests.e2e.processes import deployment, wait_until

pytestmark = pytest.mark.e2e

LINES = 60
FLAGS = ("--batch-concurrency", "4", "--batch-lease-seconds", "1")


def sdk(frontend):
    return openai.OpenAI(base_url=f"{frontend.url}/v1", api_key="none", max_retries=0)


def submit(client, lines=LINES):
    """A batch whose request n asks for the text "number-n"."""
    rows = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "echo", "prompt": f"number-{number} ", "max_tokens": 16},
        }
        for number in range(lines)
    ]
    body = "\n".join(json.dumps(row) for row in rows).encode()
    file = client.files.create(file=("input.jsonl", body), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")


def check_output(client, batch_id, lines=LINES):
    """Every request is answered, once, and with its own answer."""
    done = client.batches.retrieve(batch_id)
    assert (done.status, done.error_file_id) == ("completed", None)
    assert (done.request_counts.completed, done.request_counts.failed) == (lines, 0)
    rows = [json.loads(row) for row in client.files.content(done.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == [f"c{number}" for number in range(lines)]
    for number, row in enumerate(rows):
        assert f"number-{number} " in row["response"]["body"]["choices"][0]["text"]


def completed(client, batch_id):
    return client.batches.retrieve(batch_id).request_counts.completed


def test_another_frontend_goes_on_when_one_is_killed(tmp_path):
    with deployment(tmp_path) as processes:
        processes.worker("--tokens-per-second", "60")
        frontends = [processes.frontend(*FLAGS), processes.frontend(*FLAGS)]
        for frontend in frontends:
            processes.until_serving(frontend)
        clients = [sdk(frontend) for frontend in frontends]
        batch = submit(clients[0])
        wait_until(lambda: completed(clients[1], batch.id) >= 8, "some answers", *frontends)
        # Whichever of the two works on it.
        holder = next(n for n, frontend in enumerate(frontends) if f"batch {batch.id} is" in frontend.text())
        frontends[holder].kill()
        left = clients[1 - holder]
        assert completed(left, batch.id) < LINES
        wait_until(lambda: left.batches.retrieve(batch.id).status == "completed", "the rest", *frontends)
        check_output(left, batch.id)


def test_a_batch_goes_on_after_a_restart(tmp_path):
    with deployment(tmp_path) as processes:
        worker = processes.worker("--tokens-per-second", "60")
        frontend = processes.frontend(*FLAGS)
        processes.until_serving(frontend)
        with sdk(frontend) as client:
            batch = submit(client)
            wait_until(lambda: completed(client, batch.id) >= 8, "some answers", frontend)
        frontend.kill()
        worker.kill()
        # The frontend is back before any worker: its requests wait for the model in place of failing.
        frontend.start()
        frontend.until_ready()
        worker.start()
        with sdk(frontend) as client:
            assert 8 <= completed(client, batch.id) <= LINES
            wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", "the rest", frontend)
            check_output(client, batch.id)
