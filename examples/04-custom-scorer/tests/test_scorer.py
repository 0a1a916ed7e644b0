"""The scorer alone, and weighed against the cache in the router's own policy."""

from __future__ import annotations

import pytest
from my_scorer import SameZone

from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.core.cost import CostParameters
from dynamo.router.pickers import MaxScore
from dynamo.router.policy import RouterPolicy

REQUEST = RouteRequest("r", "m", prompt_tokens=160)


@pytest.fixture
def table(monkeypatch) -> CandidateTable:
    monkeypatch.setenv("MY_ZONE", "b")
    made = CandidateTable(RouterPolicy([], [(SameZone(), 4.0)], MaxScore(), CostParameters()))
    for number, zone in enumerate(("a", "b", "c")):
        made.put(InstanceRecord("ns", "worker", "generate", number, metadata={"zone": zone}))
    return made


def test_the_own_zone_wins_while_load_is_equal(table) -> None:
    assert {table.select(REQUEST, 0.0).key.instance_id for _ in range(20)} == {1}


def test_a_busy_worker_loses_even_there(table) -> None:
    routes = [table.route(REQUEST, 0.0) for _ in range(3)]
    assert len({route.worker for route in routes}) > 1
