"""The table of candidates follows discovery and keeps its counts."""

from __future__ import annotations

import pytest

from dynamo.plugins import plugins
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
    chosen.ended()
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
