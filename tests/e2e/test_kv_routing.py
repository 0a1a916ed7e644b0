"""KV-aware routing between processes: two frontends and four workers that agree, survive restarts and notice deaths."""

from __future__ import annotations

import subprocess
import sys
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
