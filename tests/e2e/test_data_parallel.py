"""Data parallelism: one process with two ranks. The router chooses the rank; caches, load and events are each rank's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.processes import Deployment, Frontend, Process, deployment, wait_until

pytestmark = pytest.mark.e2e

RANKS = 2
BLOCKS = 16


def story(number: int) -> list[int]:
    """A prompt of `BLOCKS` blocks of 16 tokens, and a few tokens more."""
    return [3 + (number * 7919 + index * 31) % 1000 for index in range(BLOCKS * 16 + 5)]


def ask(frontend: Frontend, prompt: list[int]) -> dict[str, Any]:
    """The routing decision for `prompt`, with the cached tokens that the engine then found."""
    body = {"model": "mocker", "prompt": prompt, "max_tokens": 2}
    answer = httpx.post(f"{frontend.url}/v1/completions", json=body, timeout=30).raise_for_status().json()
    (decision,) = httpx.get(f"{frontend.url}/debug/routing/{answer['id']}", timeout=10).json()["decisions"]
    return {**decision, "cached": answer["usage"]["prompt_tokens_details"]["cached_tokens"]}


def rank_of(decision: dict[str, Any]) -> tuple[str, int]:
    return decision["worker"], decision["dp_rank"]


def overlaps(decision: dict[str, Any]) -> dict[tuple[str, int], int]:
    return {(c["worker"], c["dp_rank"]): c["overlap_blocks"] for c in decision["candidates"]}


def until_indexed(made: Deployment, frontend: Frontend, blocks: int) -> None:
    wait_until(
        lambda: frontend.metric("dynamo_router_index_blocks") >= blocks, f"{blocks} blocks indexed", *made.processes
    )


def by_rank(process: Process, name: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{process.system_url}/metrics", timeout=5).text)
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return {sample.labels["dp_rank"]: sample.value for sample in samples}


def test_a_conversation_stays_with_its_rank(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        worker = made.worker("--data-parallel-size", str(RANKS), "--block-size", "16", backend="mocker")
        frontend = made.frontend("--router-mode", "kv", "--explain")
        made.until_serving(frontend, 1, "mocker")
        first: dict[int, tuple[str, int]] = {}
        while len(set(first.values())) < RANKS:  # idle ranks are equally good: each gets a story soon
            number = len(first)
            decision = ask(frontend, story(number))
            assert (len(decision["candidates"]), decision["cached"]) == (RANKS, 0)
            first[number] = rank_of(decision)
            until_indexed(made, frontend, (number + 1) * BLOCKS)
        assert {rank for _, rank in first.values()} == set(range(RANKS))

        for number, where in first.items():
            again = ask(frontend, story(number))
            assert rank_of(again) == where
            held = overlaps(again)
            assert held.pop(where) >= BLOCKS
            assert set(held.values()) == {0}  # the rank beside it has nothing of it
            assert again["cached"] >= BLOCKS * 16  # and so the engine served it at the rank that was chosen
        cached = by_rank(worker, "dynamo_component_cached_kv_blocks")
        assert set(cached) == {"0", "1"}
        assert min(cached.values()) >= BLOCKS

        # What a new frontend learns from the worker's snapshots is of each rank too.
        frontend.kill()
        frontend.start()
        made.until_serving(frontend, 1, "mocker")
        until_indexed(made, frontend, len(first) * BLOCKS)
        assert {number: rank_of(ask(frontend, story(number))) for number in first} == first


def test_load_is_booked_and_reported_by_rank(tmp_path: Path) -> None:
    """A rank that has a long answer under way is not given the next one."""
    with deployment(tmp_path) as made:
        worker = made.worker("--data-parallel-size", str(RANKS), "--block-size", "16", backend="mocker")
        frontend = made.frontend("--router-mode", "kv", "--explain")
        made.until_serving(frontend, 1, "mocker")
        body = {"model": "mocker", "prompt": story(0), "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{frontend.url}/v1/completions", json=body, timeout=30) as stream:
            lines = stream.iter_lines()  # kept: the stream is closed with its iterator
            next(lines)
            (running,) = httpx.get(f"{frontend.url}/debug/routing", timeout=10).json()["decisions"]
            wait_until(
                lambda: by_rank(worker, "dynamo_component_running_requests")[str(running["dp_rank"])] == 1,
                "the running request in the rank's metrics",
                *made.processes,
            )
            decisions = [ask(frontend, story(number)) for number in (1, 2)]
        for decision in decisions:
            assert decision["dp_rank"] != running["dp_rank"]
            booked = {c["dp_rank"]: c["active_requests"] for c in decision["candidates"]}
            assert booked[running["dp_rank"]] == 1
