"""With a seed, pickers choose the same again."""

from __future__ import annotations

import pytest

from dynamo.plugins import plugins
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings


def choices(record, mode, seed, **settings):
    settings = RouterSettings(router_mode=mode, router_seed=seed, **settings)
    table = CandidateTable(policy_for_mode(mode, plugins(), settings), settings)
    for number in range(1, 9):
        table.put(record(number))
    return [table.select(RouteRequest("r", "m"), 0.0).key.instance_id for _ in range(40)]


@pytest.mark.parametrize(
    ("mode", "settings"),
    [("random", {}), ("power-of-two", {}), ("least-loaded", {}), ("kv", {}), ("kv", {"router_temperature": 0.5})],
)
def test_a_seed_repeats_the_choices(record, mode, settings):
    first = choices(record, mode, 7, **settings)
    assert first == choices(record, mode, 7, **settings)
    assert first != choices(record, mode, 8, **settings)
    assert len(set(first)) > 1


def test_without_a_seed_runs_differ(record):
    assert len({tuple(choices(record, "random", None)) for _ in range(3)}) > 1
