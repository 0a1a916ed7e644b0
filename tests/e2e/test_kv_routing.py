"""KV-aware routing between processes: two frontends and four workers that agree, survive restarts and notice deaths."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.processes import Deployment, Frontend, deployment, wait_until

pytestmark = pytest.mark.e2e

FLAGS = ["--router-mode", "kv", "--explain"]
WORKERS = 4


def story(number: int) -> str:
    """A prompt of several blocks that no other shares."""
    return " ".join(f"story{number}word{index}" for index in range(40))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Deployment, list[Frontend]]]:
    with deployment(tmp_path) as made:
        for _ in range(WORKERS):
            made.worker()
        frontends = [made.frontend(*FLAGS) for _ in range(2)]
        for frontend in frontends:
            made.until_serving(frontend, WORKERS)
        yield made, frontends


def ask(frontend: Frontend, prompt: str) -> tuple[str, int, str]:
    """The worker that answered, how many blocks it held of the prompt, and the request's id."""
    body = {"model": "echo", "prompt": prompt, "max_tokens": 4}
    answer = httpx.post(
        f"{frontend.url}/v1/completions", json=body, headers={"x-dynamo-explain": "1"}, timeout=20
    ).raise_for_status()
    decisions = httpx.get(f"{frontend.url}/debug/routing/{answer.json()['id']}", timeout=20).json()["decisions"]
    (chosen,) = (candidate for candidate in decisions[0]["candidates"] if candidate["chosen"])
    return decisions[0]["worker"], chosen["overlap_blocks"], answer.json()["id"]


def indexed(*frontends: Frontend) -> list[float]:
    return [frontend.metric("dynamo_router_index_blocks") for frontend in frontends]


def until_agreed(made: Deployment, frontends: list[Frontend], at_least: float) -> None:
    """All frontends have heard of as many blocks."""

    def agreed() -> bool:
        blocks = indexed(*frontends)
        return min(blocks) == max(blocks) >= at_least

    wait_until(agreed, "the same index everywhere", *made.processes)


def test_a_conversation_stays_with_its_worker(running) -> None:
    """At the second frontend, after a frontend's restart, and until the worker dies."""
    made, frontends = running
    first: dict[int, str] = {}
    while len(set(first.values())) < WORKERS:  # idle workers are equally good: each gets a story soon
        number = len(first)
        before = indexed(frontends[0])[0]
        first[number] = ask(frontends[0], story(number))[0]
        until_agreed(made, frontends, before + 8)
    for number, worker in first.items():
        again, overlap, request = ask(frontends[1], story(number) + " and so on")
        assert again == worker
        assert overlap >= 8
    shown = subprocess.run(
        [sys.executable, "-m", "dynamo.cli", "explain", request, "--url", frontends[1].url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert again in shown

    before = indexed(frontends[1])[0]
    frontends[0].kill()
    frontends[0].start()
    made.until_serving(frontends[0], WORKERS)
    until_agreed(made, frontends, before)
    for number, worker in first.items():
        assert ask(frontends[0], story(number))[0] == worker

    held = indexed(frontends[0])[0]
    made.processes[0].kill()
    wait_until(
        lambda: len(frontends[0].instances()) == WORKERS - 1 == len(frontends[1].instances()),
        "the worker's death known",
        *made.processes,
    )
    # Discovery knows: the index must too, now.
    assert max(indexed(*frontends)) < held
    until_agreed(made, frontends, 1)
    assert {ask(frontends[0], story(number))[0] for number in first} <= set(frontends[0].instances())


@pytest.fixture(params=["zmq", "nats"])
def two_frontends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Deployment, list[Frontend]]]:
    """Two frontends and two slow workers, which tell each other of their requests over one event plane."""
    env = {"DYN_EVENT_PLANE": request.param, "DYN_NAMESPACE": f"two-frontends-{request.param}"}
    if request.param == "nats":
        env["NATS_SERVER"] = request.getfixturevalue("nats_server").url
    with deployment(tmp_path, env) as made:
        for _ in range(2):
            made.worker("--tokens-per-second", "2")
        frontends = [made.frontend(*FLAGS) for _ in range(2)]
        for frontend in frontends:
            made.until_serving(frontend, 2)
        wait_until(lambda: replicas(*frontends) == [1, 1], "frontends that know each other", *made.processes)
        yield made, frontends


def replicas(*frontends: Frontend) -> list[float]:
    return [frontend.metric("dynamo_router_replicas") for frontend in frontends]


def remote_requests(frontend: Frontend) -> float:
    return frontend.metric("dynamo_router_replica_requests")


def open_stream(frontend: Frontend, number: int) -> None:
    """A request that a worker is busy with for a long time, if nothing happens to it."""

    def read() -> None:
        body = {"model": "echo", "prompt": story(number), "max_tokens": 400, "stream": True}
        try:
            with httpx.stream("POST", f"{frontend.url}/v1/completions", json=body, timeout=60) as stream:
                for _ in stream.iter_lines():
                    pass
        except httpx.TransportError:
            pass  # the frontend was killed

    threading.Thread(target=read, daemon=True).start()


def test_a_frontend_counts_the_others_requests_and_forgets_those_of_a_dead_one(two_frontends) -> None:
    made, (one, other) = two_frontends
    for number in range(3):
        open_stream(one, number)
    wait_until(lambda: remote_requests(other) == 3, "3 requests of the other frontend", *made.processes)
    assert remote_requests(one) == 0
    # Three of theirs at two workers: the next one goes to the worker with fewer.
    page = ask_page(other, story(9))
    assert sorted(candidate["active_requests"] for candidate in page["candidates"]) == [1, 2]
    assert min(page["candidates"], key=lambda candidate: candidate["active_requests"])["chosen"]
    one.kill()
    killed = time.monotonic()
    wait_until(lambda: remote_requests(other) == 0, "the dead frontend's requests forgotten", *made.processes)
    assert time.monotonic() - killed < 15  # leases of files and three lost beats, on a busy machine
    one.start()
    wait_until(
        lambda: one.ready() and replicas(one, other) == [1, 1], "frontends that know each other again", *made.processes
    )
    open_stream(other, 20)
    wait_until(lambda: remote_requests(one) >= 1, "the restarted frontend to be told", *made.processes)


def ask_page(frontend: Frontend, prompt: str) -> dict:
    """A decision, with its candidates."""
    body = {"model": "echo", "prompt": prompt, "max_tokens": 1}
    answer = httpx.post(f"{frontend.url}/v1/completions", json=body, timeout=20).raise_for_status()
    page = httpx.get(f"{frontend.url}/debug/routing/{answer.json()['id']}", timeout=20).json()
    return page["decisions"][0]


def test_a_threshold_set_at_one_frontend_holds_at_the_other_and_after_a_restart(running) -> None:
    _, (one, other) = running
    change = {"model": "echo", "active_decode_blocks_threshold": 0.5, "active_prefill_tokens_threshold": 4000}
    assert httpx.post(f"{one.url}/busy_threshold", json=change, timeout=20).json() == change

    def known(frontend: Frontend) -> bool:
        return httpx.get(f"{frontend.url}/busy_threshold", timeout=20).json() == {"thresholds": [change]}

    wait_until(lambda: known(other), "the threshold at the other frontend", one, other)
    one.kill()
    one.start()
    wait_until(lambda: one.ready() and known(one), "the threshold after a restart", one, other)
    httpx.delete(f"{other.url}/busy_threshold/echo", timeout=20).raise_for_status()
    wait_until(lambda: not known(one), "the settings' thresholds again", one, other)
