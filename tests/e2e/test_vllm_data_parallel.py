"""One `python3 -m dynamo.vllm --data-parallel-size 2`: the router chooses the rank, each has its own cache."""

from __future__ import annotations

import pytest

from tests.e2e.processes import wait_until
from tests.e2e.vllm_processes import BLOCK, FLAGS, MARKS, Answer, complete, story, vllm_deployment

pytestmark = [*MARKS, pytest.mark.slow]

RANKS = 2
BLOCKS = 6


def test_a_conversation_stays_with_its_rank(tmp_path_factory) -> None:
    with vllm_deployment(tmp_path_factory.mktemp("vllm")) as made:
        made.vllm(*FLAGS, "--data-parallel-size", str(RANKS))
        frontend = made.frontend("--router-mode", "kv", "--explain")
        made.until_whole(frontend)
        first: dict[int, Answer] = {}
        while len({answer.where for answer in first.values()}) < RANKS:  # idle ranks are equally good
            number = len(first)
            first[number] = complete(frontend, story(number, BLOCKS))
            assert (len(first[number].overlaps), first[number].cached) == (RANKS, 0)
            wait_until(
                lambda number=number: frontend.metric("dynamo_router_index_blocks") >= (number + 1) * BLOCKS,
                "the ranks' events in the index",
                *made.processes,
            )
        assert {answer.where[1] for answer in first.values()} == set(range(RANKS))
        for number, answer in first.items():
            again = complete(frontend, story(number, BLOCKS))
            assert again.where == answer.where
            held = again.overlaps
            assert held.pop(again.where) >= BLOCKS
            assert set(held.values()) == {0}  # the rank beside it has nothing of it
            assert again.cached == BLOCKS * BLOCK  # and so the engine served it at the rank that was chosen
