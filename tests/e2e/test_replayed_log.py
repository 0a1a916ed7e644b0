"""`dynamo serve --request-log`: what several frontends write into one file is a trace for `dynamo replay`."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest

pytestmark = pytest.mark.e2e

REQUESTS = 12
SECRET = "nobody else may read this"


def test_the_log_of_two_frontends_is_replayed(serve, tmp_path):
    log = tmp_path / "requests.jsonl"
    served = serve("--backend", "echo", "--frontends", "2", "--request-log", str(log)).until_ready()
    for number in range(REQUESTS):
        body = {"model": "echo", "prompt": f"{SECRET} " * 10 + str(number), "max_tokens": 3}
        # Over a connection of its own, which any of the frontends may get.
        assert httpx.post(f"{served.url}/v1/completions", json=body, timeout=20).status_code == 200
    assert served.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({line["request_id"] for line in lines}) == len(lines) == REQUESTS
    assert {line["output_length"] for line in lines} == {3}
    assert len({tuple(line["hash_ids"][:5]) for line in lines}) == 1
    assert SECRET not in log.read_text()
    command = [sys.executable, "-m", "dynamo.cli", "replay", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, f"{REQUESTS} requests" in done.stdout) == (0, True), done.stdout + done.stderr
