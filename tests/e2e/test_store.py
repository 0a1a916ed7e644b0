"""What `dynamo serve` keeps is there when it is started again, for the same model, and for no other."""

from __future__ import annotations

import json

import openai
import pytest

from tests.e2e.served import serving

pytestmark = pytest.mark.e2e

ECHO = ("--backend", "echo")


def sdk(served, key="none"):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


def submit(client, lines=40):
    rows = [
        {"custom_id": f"c{n}", "method": "POST", "url": "/v1/completions", "body": {"model": "echo", "prompt": f"n{n}"}}
        for n in range(lines)
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")


def test_files_batches_and_responses_outlive_a_run(tmp_path):
    with serving(tmp_path, *ECHO, "--tokens-per-second", "20") as served, sdk(served.until_ready()) as client:
        response = client.responses.create(model="echo", input="hello")
        batch = submit(client)
        served.until(lambda: client.batches.retrieve(batch.id).request_counts.completed, "an answer")
        assert f"kept in {tmp_path}/store/" in served.text()
        assert served.stop() == 0
    # A run of another model, and one with API keys, leave the batch alone.
    with (
        serving(tmp_path, *ECHO, "--served-model-name", "other") as other,
        sdk(other.until_ready()) as client,
        pytest.raises(openai.NotFoundError),
    ):
        client.batches.retrieve(batch.id)
    keyed = {"DYN_API_KEYS": "sk-a-key-of-a-run"}
    with (
        serving(tmp_path, *ECHO, env=keyed) as served,
        sdk(served.until_ready(), "sk-a-key-of-a-run") as client,
        pytest.raises(openai.NotFoundError),
    ):
        client.batches.retrieve(batch.id)
    with serving(tmp_path, *ECHO) as served, sdk(served.until_ready()) as client:
        assert client.responses.retrieve(response.id).output_text == response.output_text
        served.until(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch")
        done = client.batches.retrieve(batch.id)
        assert (done.request_counts.completed, done.request_counts.failed) == (40, 0)
        assert len(client.files.content(done.output_file_id).text.splitlines()) == 40


def test_two_runs_at_once_share_a_store(tmp_path):
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        directory.mkdir()
    shared = ("--store-dir", str(tmp_path / "store"))
    with (
        serving(directories[0], *ECHO, *shared) as one,
        serving(directories[1], *ECHO, *shared) as two,
        sdk(one.until_ready()) as first,
        sdk(two.until_ready()) as second,
    ):
        response = first.responses.create(model="echo", input="hello")
        assert second.responses.retrieve(response.id).id == response.id
        batch = submit(second)
        one.until(lambda: first.batches.retrieve(batch.id).status == "completed", "the batch")


def test_none_keeps_nothing(tmp_path):
    with serving(tmp_path, *ECHO, "--store-dir", "none") as served, sdk(served.until_ready()) as client:
        client.responses.create(model="echo", input="hello")
        assert "are kept until this run ends" in served.text()
        assert served.stop() == 0
    assert not (tmp_path / "store").exists()
