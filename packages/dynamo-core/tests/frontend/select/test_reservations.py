"""Reservations end once: by their client, or when their time is up."""

from __future__ import annotations

import pytest

from dynamo.errors import DynamoError, Overloaded
from dynamo.frontend.select.reservations import Reservation, Reservations, UnknownReservation
from dynamo.plugins import plugins
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode


@pytest.fixture
def table():
    made = CandidateTable(policy_for_mode("kv", plugins()))
    made.put(InstanceRecord("ns", "backend", "generate", 1))
    return made


def reserve(table, reservations, name, expires, owner=""):
    reservations.check(name)
    route = table.route(RouteRequest(name, "m", prompt_tokens=100), 0.0)
    reservations.add(name, Reservation(route, owner, expires))


def load(table):
    [candidate] = table.candidates()
    return candidate.active_requests, candidate.kv.active.prefill_tokens


def test_load_is_there_until_the_end(table):
    reservations = Reservations(10)
    reserve(table, reservations, "a", 10.0)
    assert load(table) == (1, 100)
    reservations.get("a", "").route.answered(1.0)
    assert load(table) == (1, 0)
    reservations.end("a", "")
    assert load(table) == (0, 0)
    with pytest.raises(UnknownReservation):
        reservations.end("a", "")
    reservations.expire(100.0)
    assert (len(reservations), reservations.expired) == (0, 0)


def test_those_whose_time_is_up_go(table):
    reservations = Reservations(10)
    reserve(table, reservations, "late", 20.0)
    reserve(table, reservations, "soon", 5.0)
    reservations.expire(5.0)
    assert (len(reservations), reservations.expired) == (1, 1)
    assert load(table)[0] == 1
    # The id is free again, and its old time does not end the new one.
    reservations.end("late", "")
    reserve(table, reservations, "late", 50.0)
    reservations.expire(20.0)
    assert len(reservations) == 1


def test_another_key_does_not_find_it(table):
    reservations = Reservations(10)
    reserve(table, reservations, "a", 10.0, owner="one")
    for method in (reservations.get, reservations.end):
        with pytest.raises(UnknownReservation):
            method("a", "other")
    assert len(reservations) == 1


def test_bounds(table):
    reservations = Reservations(2)
    reserve(table, reservations, "a", 10.0)
    with pytest.raises(DynamoError) as caught:
        reserve(table, reservations, "a", 10.0)
    assert caught.value.http_status == 409
    reserve(table, reservations, "b", 10.0)
    with pytest.raises(Overloaded):
        reserve(table, reservations, "c", 10.0)


def test_ended_ones_leave_no_trace(table):
    reservations = Reservations(10)
    for number in range(1000):
        reserve(table, reservations, f"r{number}", 1e9)
        reservations.end(f"r{number}", "")
    assert len(reservations._by_expiry) < 100
    assert load(table) == (0, 0)
