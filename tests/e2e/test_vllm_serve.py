"""`dynamo serve --backend vllm` as a reader of the README types it: an answer, Ctrl-C, and nothing left."""

from __future__ import annotations

import signal

import httpx
import psutil
import pytest

from tests.e2e.vllm_processes import FLAGS, MARKS, MODEL, START_SECONDS, unused_shared_memory

pytestmark = [*MARKS, pytest.mark.slow]


def test_serve_answers_and_stops(serve, tmp_path_factory) -> None:
    # A short name: sockets lie below it, whose paths the system bounds to 107 characters.
    segments, temporary = unused_shared_memory(), tmp_path_factory.mktemp("vllm")
    served = serve("--backend", "vllm", *FLAGS, env={"HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary)})
    served.until(lambda: "Ready in" in served.text(), "readiness", START_SECONDS)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of Norway?"}]}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json={**body, "temperature": 0}, timeout=60)
    assert "Oslo" in answer.json()["choices"][0]["message"]["content"]
    children = served.processes()
    assert any("EngineCore" in child.name() for child in children)
    assert served.stop(signal.SIGINT) in (0, 130)
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert [path.name for path in temporary.iterdir() if path.name.startswith(("dynamo-", "vllm_"))] == []
    assert unused_shared_memory() - segments == set()
