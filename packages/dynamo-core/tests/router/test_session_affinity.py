"""Requests of one session stay together, and sessions are forgotten."""

from __future__ import annotations

import types

import pytest

from dynamo.plugins import plugins
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode
from dynamo.router.scorers import SessionAffinity
from dynamo.router.settings import RouterSettings

KEYS = [WorkerKey(InstanceId(number)) for number in range(3)]
CANDIDATES = [types.SimpleNamespace(key=key) for key in KEYS]


def session(name):
    return RouteRequest("r", "m", session=name)


def test_the_last_worker_of_the_session_scores():
    scorer = SessionAffinity()
    assert scorer.score(session("a"), CANDIDATES) == [0.0, 0.0, 0.0]
    scorer.routed(session("a"), KEYS[1], 0.0)
    scorer.routed(session("b"), KEYS[2], 0.0)
    scorer.routed(session("a"), KEYS[0], 1.0)
    assert scorer.score(session("a"), CANDIDATES) == [1.0, 0.0, 0.0]
    assert scorer.score(session(None), CANDIDATES) == [0.0, 0.0, 0.0]


def test_requests_without_a_session_leave_nothing():
    scorer = SessionAffinity()
    scorer.routed(session(None), KEYS[1], 0.0)
    assert len(scorer) == 0


def test_old_sessions_go():
    scorer = SessionAffinity(ttl_seconds=10.0)
    for name, now in (("a", 0.0), ("b", 5.0), ("a", 8.0), ("c", 15.0)):
        scorer.routed(session(name), KEYS[0], now)
    assert scorer.score(session("b"), CANDIDATES) == [0.0, 0.0, 0.0]
    assert scorer.score(session("a"), CANDIDATES) == [1.0, 0.0, 0.0]


def test_sessions_are_bounded():
    scorer = SessionAffinity(most_sessions=100)
    for number in range(1000):
        scorer.routed(session(str(number)), KEYS[0], 0.0)
    assert len(scorer) == 100
    assert scorer.score(session("999"), CANDIDATES)[0] == 1.0


@pytest.mark.parametrize("mode", ["kv", "kv-upstream", "least-loaded"])
def test_sessions_stay_together_in_modes_with_scores(record, mode):
    settings = RouterSettings(router_mode=mode, router_session_affinity_ttl_seconds=60.0)
    table = CandidateTable(policy_for_mode(mode, plugins(), settings), settings)
    for number in range(1, 5):
        table.put(record(number))
    workers = {name: {table.route(session(name), 0.0).worker for _ in range(10)} for name in "abcdefgh"}
    assert all(len(found) == 1 for found in workers.values())
    assert len(set.union(*workers.values())) > 1


def test_a_session_goes_on_elsewhere_when_its_worker_is_gone(record):
    settings = RouterSettings(router_mode="kv", router_session_affinity_ttl_seconds=60.0)
    table = CandidateTable(policy_for_mode("kv", plugins(), settings), settings)
    for number in (1, 2):
        table.put(record(number))
    first = table.route(session("a"), 0.0).worker
    table.remove(first.instance_id)
    second = table.route(session("a"), 0.0).worker
    table.put(record(first.instance_id))
    assert second != first
    assert {table.route(session("a"), 0.0).worker for _ in range(5)} == {second}


def test_a_change_of_the_settings_keeps_the_sessions(record):
    settings = RouterSettings(router_mode="kv", router_session_affinity_ttl_seconds=60.0)
    table = CandidateTable(policy_for_mode("kv", plugins(), settings), settings)
    for number in range(1, 9):
        table.put(record(number))
    before = {name: table.route(session(name), 0.0).worker for name in "abcdefgh"}
    changed = settings.model_copy(update={"router_session_affinity_blocks": 5000.0})
    table.configure(policy_for_mode("kv", plugins(), changed), changed)
    assert {name: table.route(session(name), 1.0).worker for name in before} == before
