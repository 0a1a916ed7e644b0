"""``python3 -m dynamo.frontend.select`` before two of vLLM's own OpenAI servers, which know nothing of it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dynamo.reference import demo_model_directory
from dynamo.testing.servers import free_port
from tests.e2e.processes import Process, wait_until
from tests.e2e.select_process import SelectService
from tests.e2e.vllm_processes import BLOCK, BLOCKS, FLAGS, MARKS, MODEL, START_SECONDS, story

pytestmark = [*MARKS, pytest.mark.slow]

SYSTEM = "You are a lighthouse keeper who answers briefly. " * 12
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class Server(Process):
    """vLLM's OpenAI server, started as its users start it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.port, self._events, self._replay = free_port(), free_port(), free_port()
        events = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": "kv"}
        events |= {"endpoint": f"tcp://*:{self._events}", "replay_endpoint": f"tcp://*:{self._replay}"}
        command = ["vllm.entrypoints.openai.api_server", "--host=127.0.0.1", f"--port={self.port}"]
        command += [
            f"--model={demo_model_directory()}",
            f"--served-model-name={MODEL}",
            f"--block-size={BLOCK}",
            *FLAGS,
        ]
        command += ["--enforce-eager", "--dtype=float32", "--enable-prompt-tokens-details"]
        command.append(f"--kv-events-config={json.dumps(events)}")
        super().__init__(command, {**ENVIRONMENT, "TMPDIR": str(directory)}, directory / f"{name}.log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def system_url(self) -> str:
        """Its health is on the one port that it has."""
        return self.url

    def registration(self) -> dict[str, Any]:
        endpoints = {
            "endpoint": f"tcp://127.0.0.1:{self._events}",
            "replay_endpoint": f"tcp://127.0.0.1:{self._replay}",
        }
        events = {**endpoints, "topic": "kv"}
        return {"worker_id": self.name, "model": MODEL, "url": self.url, "block_size": BLOCK, "kv_events": events}

    def complete(self, prompt: list[int]) -> None:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 1}
        httpx.post(f"{self.url}/v1/completions", json=body, timeout=60).raise_for_status()

    def end(self) -> None:
        """A stop signal: vLLM's engine would outlive a server that is killed, and so would its semaphores."""
        family = psutil.Process(self.pid).children(recursive=True) if self.running else []
        with suppress(subprocess.TimeoutExpired):
            self.stop()
        super().end()
        assert psutil.wait_procs(family, timeout=30)[1] == []


class Gateway:
    """What its users write around the service: ask it, send the request there, report its end."""

    def __init__(self, service: SelectService, servers: dict[str, Server]) -> None:
        self.service = service
        self.servers = servers

    def chat(self, messages: list[dict[str, str]], **fields: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The service's selection, and vLLM's answer."""
        asked = {"messages": messages, "reservation_id": "one", **fields}
        selected = self.service.post("/select_and_reserve", asked)
        body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24, **fields}
        answer = httpx.post(f"{selected['url']}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
        self.service.post("/reservations/one/prefill_complete")
        assert self.service.ask("DELETE", "/reservations/one").status_code == 200
        return selected, answer

    def blocks(self, name: str) -> int:
        (rank,) = self.service.get(f"/workers/{name}")["kv_event_ranks"]
        assert rank["dropped"] == {}
        return int(rank["blocks"])

    def overlap(self, prompt: list[int]) -> dict[str, int]:
        scores = self.service.post("/overlap_scores", {"token_ids": prompt})["workers"]
        return {score["worker_id"]: score["overlap_blocks"] for score in scores}

    def until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, what, self.service, *self.servers.values())


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with tempfile.TemporaryDirectory() as folder:  # a short name: sockets lie below it
        directory = Path(folder)
        servers = {name: Server(name, directory) for name in ("one", "two")}
        file = directory / "workers.json"
        file.write_text(json.dumps([server.registration() for server in servers.values()]))
        service = SelectService(
            directory, "--workers-file", str(file), "--tokenizer", f"{MODEL}={demo_model_directory()}"
        )
        processes = [service, *servers.values()]
        try:
            for process in processes:
                process.start()
            for process in processes:
                wait_until(process.ready, "readiness", process, seconds=START_SECONDS)
            yield Gateway(service, servers)
        finally:
            for process in processes:
                process.end()


def cached(answer: dict[str, Any]) -> int:
    return int((answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0))


def test_a_conversation_stays_with_its_server(gateway) -> None:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "What is 7 plus 6?"}]
    selected, answer = gateway.chat(messages)
    first = selected["worker_id"]
    assert (selected["overlap_blocks"], cached(answer)) == (0, 0)
    assert selected["prompt_tokens"] == answer["usage"]["prompt_tokens"]  # tokenized as the server does
    held = answer["usage"]["prompt_tokens"] // BLOCK
    gateway.until(lambda: gateway.blocks(first) >= held, "the server's events")

    for question in ("And what is 2 plus 2?", "Count from 1 to 5."):
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        messages.append({"role": "user", "content": question})
        selected, answer = gateway.chat(messages)
        assert selected["worker_id"] == first
        assert selected["cached_tokens"] == cached(answer) >= held * BLOCK
        held = answer["usage"]["prompt_tokens"] // BLOCK
        gateway.until(lambda held=held: gateway.blocks(first) >= held, "the server's events")

    # Somebody else's cache is not used, by vLLM or in the service's opinion.
    selected, answer = gateway.chat(messages, cache_salt="tenant")
    assert selected["cached_tokens"] == cached(answer) == 0
    salted = selected["worker_id"]
    gateway.until(lambda: _salted_overlap(gateway, messages, salted) >= held, "the salted blocks")
    selected, answer = gateway.chat(messages, cache_salt="tenant")
    assert selected["worker_id"] == salted
    assert selected["cached_tokens"] == cached(answer) > 0


def _salted_overlap(gateway: Gateway, messages: list[dict[str, str]], name: str) -> int:
    scores = gateway.service.post("/overlap_scores", {"messages": messages, "cache_salt": "tenant"})["workers"]
    return int(next(score["overlap_blocks"] for score in scores if score["worker_id"] == name))


def test_evictions_are_seen(gateway) -> None:
    gateway.servers["two"].complete(story(1, 10))
    gateway.until(lambda: gateway.overlap(story(1, 10)) == {"one": 0, "two": 10}, "the prompt in the index")
    for number in range(2, 2 + BLOCKS // 10):
        gateway.servers["two"].complete(story(number, 10))
    gateway.until(lambda: gateway.overlap(story(BLOCKS // 10 + 1, 10))["two"] == 10, "the last prompt in the index")
    assert gateway.overlap(story(1, 10)) == {"one": 0, "two": 0}
    assert gateway.blocks("two") <= BLOCKS


def test_a_server_that_was_started_anew_has_an_empty_cache(gateway) -> None:
    server = gateway.servers["one"]
    server.complete(story(50, 5))
    gateway.until(lambda: gateway.overlap(story(50, 5))["one"] == 5, "the prompt in the index")
    assert server.stop() in (0, -15)
    # Whoever finds it dead excludes it.
    away = gateway.service.post("/select", {"token_ids": story(50, 5), "excluded_workers": ["one"]})
    assert away["worker_id"] == "two"
    server.start()
    wait_until(server.ready, "readiness", server, seconds=START_SECONDS)
    server.complete(story(51, 5))
    gateway.until(lambda: gateway.overlap(story(51, 5))["one"] == 5, "the new server's events")
    assert gateway.overlap(story(50, 5))["one"] == 0
    assert gateway.blocks("one") <= 6
