"""`dynamo serve` under load while its workers are killed: no stream breaks, everything comes back, nothing is left."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

DYNAMO = [sys.executable, "-m", "dynamo.cli"]
#: Slow enough that a stream of 120 tokens is open for a second.
ENGINE_FLAGS = ["--step-delay-ms", "8"]
KILLS = 4
STREAMS = 6


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Two workers and a frontend: the URL and the state directory."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [*DYNAMO, "serve", "--replicas", "2", "--port", str(port), "--state-dir", str(tmp_path)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, *ENGINE_FLAGS], stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until(lambda: _ready_workers(tmp_path) == 2, 60)
        yield f"http://127.0.0.1:{port}", tmp_path
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
        assert psutil.wait_procs(children, timeout=10)[1] == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def test_streams_survive_killed_workers(deployment: tuple[str, Path]):
    url, state = deployment
    stop = asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        clients = [asyncio.create_task(_ask_until(client, stop)) for _ in range(STREAMS)]
        for number in range(KILLS):
            await asyncio.to_thread(_wait_until, lambda: _ready_workers(state) == 2, 60)
            await _until_busy(client)
            pids = _worker_pids(state)
            os.kill(pids[number % len(pids)], signal.SIGKILL)
        stop.set()
        finished = [reason for reasons in await asyncio.gather(*clients) for reason in reasons]
    assert len(finished) >= STREAMS
    assert set(finished) <= {"stop", "length"}
    _wait_until(lambda: _ready_workers(state) == 2, 60)
    assert sum(map(int, re.findall(r"(\d+) restarts", _status(state)))) == KILLS


async def _ask_until(client: httpx.AsyncClient, stop: asyncio.Event) -> list[str]:
    """Finish reasons of streams asked one after the other; an error shows as what it says."""
    reasons = []
    while not stop.is_set():
        body = {"model": "dynamo-demo", "prompt": "Once", "max_tokens": 120, "stream": True, "ignore_eos": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            text = (await response.aread()).decode()
        found = re.findall(r'"finish_reason":\s*"(\w+)"', text)
        reasons.append(found[-1] if found and "[DONE]" in text else text)
    return reasons


async def _until_busy(client: httpx.AsyncClient) -> None:
    """Return when another request has been through, so that streams are open now."""
    body = {"model": "dynamo-demo", "prompt": "Once", "max_tokens": 4}
    assert (await client.post("/v1/completions", json=body)).status_code == 200


def _status(state: Path) -> str:
    command = [*DYNAMO, "serve", "--status", "--state-dir", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def _worker_pids(state: Path) -> list[int]:
    workers = _status(state).partition("worker:")[2]
    return [int(pid) for pid in re.findall(r"ready, process (\d+)", workers)]


def _ready_workers(state: Path) -> int:
    return len(_worker_pids(state))


def _wait_until(holds, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
