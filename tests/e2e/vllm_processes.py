"""A deployment whose workers host vLLM, for the `test_vllm*.py` beside it: starts, restarts and leaves nothing behind.

Starting an engine takes 10 seconds of CPU: a module's tests share their engines, and a test that has killed one leaves
it to the next test to start it again.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dynamo.reference import demo_model_directory
from tests.e2e.processes import Deployment, Frontend, Process, wait_until

MODEL = "dynamo-demo"
BLOCK = 32
BLOCKS = 40
START_SECONDS = 500.0
#: A pool of 1,280 tokens: a few prompts overfill it. It must hold one request of the model's whole length.
FLAGS = ("--kv-cache-memory-bytes=16777216", "--max-model-len=1024", f"--num-gpu-blocks-override={BLOCKS}")
MARKS = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason='vLLM is not installed; nox -s "engine(vllm)" has it'
    ),
]


class VllmDeployment(Deployment):
    """A frontend that routes by KV cache and workers that host vLLM."""

    def __init__(self, directory: Path) -> None:
        temporary = directory / "tmp"
        temporary.mkdir(parents=True)
        env = {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "DYN_LORA_ENABLED": "true"}
        super().__init__(directory, {**env, "DYN_LORA_PATH": str(directory)})
        self.temporary = temporary
        self._ports: set[int] = set()

    def vllm(self, *flags: str) -> Process:
        """Start ``python3 -m dynamo.vllm`` with the demo model; it is not ready yet."""
        model = ["--model", str(demo_model_directory()), "--served-model-name", MODEL]
        return self._add(Process(["dynamo.vllm", *model, *flags], self.env, self._log()))

    def until_whole(self, frontend: Frontend, model: str = MODEL) -> None:
        """Start again what has ended, and wait until `frontend` knows all workers."""
        for process in self.processes:
            if not process.running:
                process.start()
        workers = [process for process in self.processes if process is not frontend]
        for process in self.processes:
            _until_up(process)
        wait_until(lambda: model in frontend.models(), f"model {model}", *self.processes)
        wait_until(lambda: len(frontend.instances()) == len(workers), "all instances", *self.processes)
        self._ports |= {c.laddr.port for p in self.members() for c in _connections(p) if c.status == psutil.CONN_LISTEN}

    def members(self) -> list[psutil.Process]:
        """All processes of this deployment, whoever started them."""
        return [process for process in psutil.process_iter() if self._is_member(process)]

    def check_that_nothing_is_left(self) -> None:
        """After the end of all that was started: no process, no temporary file, no shared memory, no open port."""
        wait_until(lambda: self.members() == [], f"the end of {self.members()}", *self.processes)
        assert [path.name for path in self.temporary.iterdir() if path.name.startswith(("dynamo-", "vllm_"))] == []
        assert [port for port in self._ports if _answers(port)] == []

    def _is_member(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.environ().get("DYN_STATE_DIR") == self.env["DYN_STATE_DIR"]
        return False


@contextmanager
def vllm_deployment(directory: Path) -> Iterator[VllmDeployment]:
    """A deployment without processes, whose processes end with the block and must leave nothing."""
    segments = unused_shared_memory()
    made = VllmDeployment(directory)
    try:
        yield made
    finally:
        for process in made.processes:
            process.end()
    made.check_that_nothing_is_left()
    assert unused_shared_memory() - segments == set()


class Answer:
    """An answer with the decision that led to it."""

    def __init__(self, frontend: Frontend, body: dict[str, Any]) -> None:
        self.body = body
        self.id: str = body["id"]
        self.usage: dict[str, Any] = body["usage"]
        self.choice: dict[str, Any] = body["choices"][0]
        self.decision: dict[str, Any] = decision_of(frontend, self.id)

    @property
    def cached(self) -> int:
        """Prompt tokens that the engine had."""
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])

    @property
    def where(self) -> tuple[str, int]:
        """Instance and rank."""
        return self.decision["worker"], self.decision["dp_rank"]

    @property
    def overlaps(self) -> dict[tuple[str, int], int]:
        """Blocks of the prompt that the router knew at each worker."""
        return {(c["worker"], c["dp_rank"]): c["overlap_blocks"] for c in self.decision["candidates"]}


def decision_of(frontend: Frontend, request_id: str) -> dict[str, Any]:
    """The first routing decision of a request."""
    page = httpx.get(f"{frontend.url}/debug/routing/{request_id}", timeout=20).raise_for_status().json()
    return page["decisions"][0]


def chat(frontend: Frontend, messages: list[dict[str, Any]] | str, **fields: Any) -> Answer:
    """A greedy chat completion; `messages` may be the one question."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 100, **fields}
    response = httpx.post(f"{frontend.url}/v1/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return Answer(frontend, response.json())


def complete(frontend: Frontend, prompt: str | list[int], **fields: Any) -> Answer:
    """A greedy completion."""
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 4, **fields}
    response = httpx.post(f"{frontend.url}/v1/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return Answer(frontend, response.json())


def story(number: int, blocks: int) -> list[int]:
    """A prompt of `blocks` blocks and a few tokens more, which shares nothing with the others."""
    return [3 + (number * 7919 + index * 31) % 1000 for index in range(blocks * BLOCK + 5)]


def engine_core(worker: Process) -> psutil.Process:
    """The engine's process behind a worker."""
    children = psutil.Process(worker.pid).children(recursive=True)
    return next(child for child in children if "EngineCore" in child.name())


def unused_shared_memory() -> set[str]:
    """What lies in /dev/shm and no process has open; semaphores are removed by Python's tracker when it ends."""
    maps = []
    for process in psutil.process_iter():
        with suppress(OSError):
            maps.append(Path(f"/proc/{process.pid}/maps").read_text())
    segments = [path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")]
    return {
        str(path) for path in segments if path.stat().st_uid == os.getuid() and not any(str(path) in m for m in maps)
    }


def _until_up(process: Process) -> None:
    """Wait until it is ready, asking seldom: the engine that starts meanwhile needs the processor."""
    deadline = time.monotonic() + START_SECONDS
    while not process.ready():
        assert process.running, f"it ended before it was ready:\n{process.text()[-5000:]}"
        assert time.monotonic() < deadline, f"not ready within {START_SECONDS:g} s:\n{process.text()[-5000:]}"
        time.sleep(0.5)


def _connections(process: psutil.Process) -> list[Any]:
    with suppress(psutil.Error):
        return process.net_connections()
    return []


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
