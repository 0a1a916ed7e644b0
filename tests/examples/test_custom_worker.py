"""examples/03-custom-worker does what its README says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "03-custom-worker"
TIMEOUT = 60.0


def start(script: str, state: Path) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE / script)],
        env={**inherited, "DYN_STATE_DIR": str(state)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask(text: str, state: Path) -> tuple[int, str, str]:
    client = start("client.py", state)
    output, errors = client.communicate(text, timeout=TIMEOUT)
    return client.returncode, output, errors


@pytest.fixture
def worker(tmp_path):
    process = start("worker.py", tmp_path)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.e2e
def test_the_client_finds_the_worker_and_the_worker_leaves_in_order(worker, tmp_path):
    assert worker.stdout.readline() == "serving dyn://dynamo.counter.count_words\n"
    status, output, errors = ask("one two three\nfour five\n", tmp_path)
    assert (status, output) == (0, "line 1: 3 words\nline 2: 2 words\n"), errors
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=TIMEOUT)
    assert worker.returncode == 0
    status, output, errors = ask("one\n", tmp_path)
    assert (status, output) == (1, "")
    assert "Error: nobody serves dyn://dynamo.counter.count_words\n" in errors


def test_the_worker_is_short():
    code = [line for line in (EXAMPLE / "worker.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 35
