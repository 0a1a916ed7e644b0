"""Two `python3 -m dynamo.vllm` behind the KV router, fed by the engines' own events: caches, answers, deaths."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynamo.reference import demo_model_directory
from dynamo.testing.lora_adapters import write_lora_adapter
from tests.e2e.processes import Frontend, Process, wait_until
from tests.e2e.vllm_processes import (
    BLOCK,
    BLOCKS,
    FLAGS,
    MARKS,
    MODEL,
    Answer,
    VllmDeployment,
    chat,
    complete,
    decision_of,
    engine_core,
    story,
    vllm_deployment,
)

pytestmark = MARKS

LONG = 900
#: Its greedy answer is decided by a wide margin at each of the `LONG` tokens, so both workers must say the same.
QUESTION = [{"role": "user", "content": "Count from 1 to 100."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Running:
    """The module's deployment, all of whose workers live."""

    def __init__(self, made: VllmDeployment, frontend: Frontend, workers: list[Process]) -> None:
        self.made = made
        self.frontend = frontend
        self.workers = workers

    def worker(self, instance: str) -> Process:
        """The process behind an instance."""
        return next(worker for worker in self.workers if worker.running and instance_of(worker) == instance)

    def index_blocks(self) -> float:
        return self.frontend.metric("dynamo_router_index_blocks")

    def until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, what, *self.made.processes)


def instance_of(worker: Process) -> str:
    """What a worker calls itself in its metrics."""
    text = httpx.get(f"{worker.system_url}/metrics", timeout=10).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return next(sample.labels["worker_id"] for sample in samples if "worker_id" in sample.labels)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with vllm_deployment(tmp_path_factory.mktemp("vllm")) as made:
        workers = [made.vllm(*FLAGS, "--enable-lora") for _ in range(2)]
        yield Running(made, made.frontend("--router-mode", "kv", "--explain"), workers)


@pytest.fixture
def running(deployed: Running) -> Running:
    deployed.made.until_whole(deployed.frontend)
    return deployed


def test_the_second_turn_goes_to_the_worker_of_the_first_also_after_a_restart(running) -> None:
    frontend = running.frontend
    first: dict[int, Answer] = {}
    while len({answer.where for answer in first.values()}) < 2:  # idle workers are equally good: each gets one soon
        number, before = 100 + len(first), running.index_blocks()
        first[number] = complete(frontend, story(number, 6))
        assert first[number].cached == 0
        running.until(lambda before=before: running.index_blocks() >= before + 6, "the engine's events in the index")
    for number, answer in first.items():
        second = complete(frontend, [*story(number, 6), *range(3, 43)])
        assert second.where == answer.where
        assert second.overlaps[answer.where] >= 6
        assert second.cached >= 6 * BLOCK

    held = running.index_blocks()
    frontend.kill()
    frontend.start()
    running.made.until_whole(frontend)
    running.until(lambda: running.index_blocks() >= held, "the workers' snapshots")
    for number, answer in first.items():
        third = complete(frontend, [*story(number, 6), *range(3, 43), *range(50, 90)])
        assert third.where == answer.where
        assert third.cached >= 7 * BLOCK


def test_the_router_sees_what_an_engine_evicts(running) -> None:
    frontend = running.frontend
    kept = complete(frontend, story(200, 10))
    pinned = {"nvext": {"backend_instance_id": kept.where[0]}}
    others = range(201, 201 + BLOCKS // 10 + 1)
    for number in others:
        complete(frontend, story(number, 10), **pinned)

    def last_is_known() -> bool:
        return complete(frontend, story(others[-1], 10)).overlaps[kept.where] >= 10

    running.until(last_is_known, "the last prompt in the index")  # and with it all that came before
    again = complete(frontend, story(200, 10))
    assert again.overlaps[kept.where] == 0
    assert again.cached == 0
    assert max(worker.metric("dynamo_component_cached_kv_blocks") for worker in running.workers) <= BLOCKS


def test_answers_follow_a_schema_and_call_tools(running) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = chat(running.frontend, "Tell me about Ada as JSON.", response_format=schema)
    person = json.loads(answer.choice["message"]["content"])
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)

    called = chat(running.frontend, "What is the weather in Oslo?", tools=[WEATHER])
    assert called.choice["finish_reason"] == "tool_calls"
    (call,) = called.choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}

    thought = chat(running.frontend, "What is 7 plus 6?").choice["message"]
    assert "7 + 6" in thought["reasoning_content"]
    assert "13" in thought["content"]
    assert "think" not in thought["content"]


@pytest.mark.slow
def test_logprobs_are_those_of_the_chosen_tokens(running) -> None:
    """The engine's first request with them compiles a function, for some seconds."""
    answer = chat(running.frontend, "What is the capital of Norway?", logprobs=True, top_logprobs=2)
    rows = answer.choice["logprobs"]["content"]
    assert "".join(row["token"] for row in rows).strip() == answer.choice["message"]["content"].strip()
    for row in rows:  # greedy: the chosen one is the likeliest
        assert (row["top_logprobs"][0]["token"], row["top_logprobs"][0]["logprob"]) == (row["token"], row["logprob"])
        assert row["top_logprobs"][1]["logprob"] <= row["logprob"] <= 0


@pytest.mark.slow
def test_an_adapter_that_is_loaded_at_run_time_is_a_model(running, tmp_path) -> None:
    frontend, worker = running.frontend, running.workers[1]
    directory = write_lora_adapter(running.made.directory / "late", demo_model_directory(), seed=8)
    loras = f"{worker.system_url}/v1/loras"
    body = {"lora_name": "late", "source": {"uri": directory.as_uri()}}
    loaded = httpx.post(loras, json=body, timeout=60)
    assert loaded.status_code == 200, loaded.text
    running.until(lambda: "late" in frontend.models(), "the adapter among the models")
    prompt = story(300, 3)
    base, tuned = complete(frontend, prompt), complete(frontend, prompt, model="late")
    assert tuned.choice["text"] != base.choice["text"]
    assert tuned.where[0] == instance_of(worker)
    assert list(tuned.overlaps) == [tuned.where]  # who lacks the adapter is no candidate
    again = complete(frontend, prompt, model="late")
    assert again.cached == 3 * BLOCK
    assert again.choice["text"] == tuned.choice["text"]
    assert httpx.delete(f"{loras}/late", timeout=60).status_code == 200
    running.until(lambda: "late" not in frontend.models(), "the adapter gone")


class Stream:
    """A long greedy answer, read while something happens to who makes it."""

    def __init__(self, running: Running) -> None:
        self.whole = chat(running.frontend, QUESTION, max_tokens=LONG, ignore_eos=True)
        assert self.whole.usage["completion_tokens"] == LONG
        self._running = running
        self.text = ""
        self.usage: dict[str, Any] = {}

    def run(self, disturb: Callable[[Process], None]) -> None:
        """Read to the end; `disturb` gets the worker once it has begun to answer."""
        body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": LONG, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        url = f"{self._running.frontend.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=120) as response:
            lines = (line[6:] for line in response.iter_lines() if line.startswith("data: "))
            for line in lines:
                if line == "[DONE]":
                    return
                chunk = json.loads(line)
                self.usage = chunk.get("usage") or self.usage
                fresh = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if fresh and not self.text:
                    where = decision_of(self._running.frontend, chunk["id"])["worker"]
                    disturb(self._running.worker(where))
                self.text += fresh
        pytest.fail(f"the stream ended without its mark after {self.text[-200:]!r}")

    def check(self) -> None:
        """Text and usage are those of the answer that nothing disturbed."""
        assert self.text == self.whole.choice["message"]["content"]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert self.usage[name] == self.whole.usage[name]


def test_a_stream_survives_the_death_of_its_engine(running) -> None:
    """kill -9 of the engine's own process, which the worker has to notice and to report."""
    stream, moved = Stream(running), running.frontend.metric("dynamo_frontend_migrations_total")
    hit: list[Process] = []

    def kill(worker: Process) -> None:
        engine_core(worker).kill()
        hit.append(worker)

    stream.run(kill)
    stream.check()
    assert running.frontend.metric("dynamo_frontend_migrations_total") == moved + 1
    assert hit[0].wait(60) == 1
    assert "vLLM's engine process ended" in hit[0].text()
    running.until(lambda: len(running.frontend.instances()) == 1, "the dead worker's instance gone")


@pytest.mark.slow
def test_a_stream_survives_the_death_of_its_worker(running) -> None:
    """kill -9 of the worker: the stream moves, and its engine ends too."""
    stream, moved = Stream(running), running.frontend.metric("dynamo_frontend_migrations_total")
    orphans: list[psutil.Process] = []

    def kill(worker: Process) -> None:
        orphans.append(engine_core(worker))
        worker.kill()

    stream.run(kill)
    stream.check()
    assert running.frontend.metric("dynamo_frontend_migrations_total") == moved + 1
    assert psutil.wait_procs(orphans, timeout=30)[1] == []


@pytest.mark.slow
def test_a_stop_signal_lets_streams_end_where_they_are(running) -> None:
    stream, moved = Stream(running), running.frontend.metric("dynamo_frontend_migrations_total")
    hit: list[Process] = []

    def stop(worker: Process) -> None:
        worker.send(signal.SIGTERM)
        hit.append(worker)
        running.until(lambda: len(running.frontend.instances()) == 1, "the draining worker's instance gone")
        # What comes now goes to the other worker.
        assert complete(running.frontend, story(400, 1)).choice["finish_reason"] == "length"

    stream.run(stop)
    stream.check()
    assert running.frontend.metric("dynamo_frontend_migrations_total") == moved
    assert hit[0].wait(60) == 0
