"""The table of candidates follows discovery and keeps its counts."""

from __future__ import annotations

import pytest

from dynamo.errors import CannotConnect, NoInstances
from dynamo.plugins import plugins
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode

REQUEST = RouteRequest("r", "m")
NOW = 0.0


@pytest.fixture
def table() -> CandidateTable:
    return CandidateTable(policy_for_mode("round-robin", plugins()))


def keys(table: CandidateTable) -> set[tuple[int, int]]:
    return {tuple(table.select(REQUEST, NOW).key) for _ in range(4 * max(1, len(table)))}


def test_an_instance_has_a_candidate_for_each_rank(table, record):
    table.put(record(1, 3))
    table.put(record(2))
    table.put(record(3, 0))
    assert len(table) == 5
    assert keys(table) == {(1, 0), (1, 1), (1, 2), (2, 0), (3, 0)}


def test_a_new_record_is_taken_over_and_requests_in_flight_stay_counted(table, record):
    table.put(record(1, 1))
    chosen = table.select(REQUEST, NOW)
    for _ in range(4):
        chosen.sent()
    chosen.ended(0)
    table.put(record(1, 1, metadata={"zone": "b"}))
    again = table.select(REQUEST, NOW)
    assert again is chosen
    assert (again.active_requests, again.record.metadata) == (3, {"zone": "b"})


def test_ranks_come_and_go_with_the_record(table, record):
    table.put(record(1, 1))
    first = table.select(REQUEST, NOW)
    first.sent()
    table.put(record(1, 4))
    assert len(table) == 4
    table.put(record(2, 4))
    table.put(record(1, 2))
    assert keys(table) == {(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)}
    assert first.active_requests == 1


def test_removing_an_instance_takes_all_its_ranks_and_nobody_elses(table, record):
    table.put(record(1, 2))
    table.put(record(2, 2))
    kept = [table.select(REQUEST, NOW) for _ in range(4)]
    for candidate in kept:
        candidate.active_requests = 7
    table.remove(1)
    table.remove(99)
    assert keys(table) == {(2, 0), (2, 1)}
    assert table.select(REQUEST, NOW).active_requests == 7


def test_an_instance_that_comes_back_is_idle(table, record):
    table.put(record(1))
    table.select(REQUEST, NOW).active_requests = 7
    table.remove(1)
    table.put(record(1))
    assert table.select(REQUEST, NOW).active_requests == 0


def test_records_are_one_per_instance(table, record):
    table.put(record(2, 3))
    table.put(record(1))
    assert [r.instance_id for r in table.records()] == [1, 2]


def test_requests_for_an_adapter_go_to_who_holds_it(table):
    table.put(_holding(1))
    table.put(_holding(2, "a", "b"))
    table.put(_holding(3, "b"))
    chosen = {lora: {table.select(_asking(lora), NOW).key.instance_id for _ in range(6)} for lora in (None, "a", "b")}
    assert chosen == {None: {1, 2, 3}, "a": {2}, "b": {2, 3}}
    with pytest.raises(NoInstances, match="no worker of 'm'"):
        table.select(_asking("c"), NOW)
    table.put(_holding(2))
    with pytest.raises(NoInstances):
        table.select(_asking("a"), NOW)
    assert table.select(_asking("b", excluded=frozenset([3])), NOW).key.instance_id == 3  # better than nobody


def test_a_broken_holder_is_tried_when_only_workers_without_the_adapter_are_well(table):
    table.put(_holding(1))
    table.put(_holding(2, "a"))
    holder = table.select(_asking("a"), NOW)
    holder.failed(CannotConnect("gone"), NOW)
    assert not holder.breaker.closed
    assert {table.select(REQUEST, NOW).key.instance_id for _ in range(4)} == {1}
    assert table.select(_asking("a"), NOW) is holder


def _holding(instance_id: int, *loras: str) -> InstanceRecord:
    card = ModelDeploymentCard("m", loras=list(loras))
    return InstanceRecord("ns", "backend", "generate", instance_id, card=card)


def _asking(lora: str | None, **fields) -> RouteRequest:
    return RouteRequest("r", "m", lora=lora, **fields)
