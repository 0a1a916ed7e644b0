"""The circuit breaker on a clock that the test moves."""

from __future__ import annotations

from dynamo.errors import CannotConnect, Disconnected, EngineError, Overloaded
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.router.breaker import FAILURES_TO_OPEN, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, CircuitBreaker
from dynamo.router.candidates import Candidate


def opened(now=0.0):
    breaker = CircuitBreaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now)
    return breaker


def test_a_few_failures_change_nothing():
    breaker = CircuitBreaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.succeeded()
    breaker.failed(0.0)
    assert breaker.closed


def test_failures_in_a_row_open_the_circuit_for_a_pause():
    breaker = opened()
    assert not breaker.allows(FIRST_PAUSE_SECONDS - 0.01)
    assert breaker.allows(FIRST_PAUSE_SECONDS)


def test_only_one_probe_at_a_time():
    breaker = opened()
    breaker.sent()
    assert not breaker.allows(100.0)
    breaker.succeeded()
    assert breaker.allows(100.0)
    assert breaker.closed


def test_the_pause_doubles_with_failed_probes_up_to_a_limit():
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(8):
        now += LONGEST_PAUSE_SECONDS
        breaker.failed(now, probe=breaker.sent())
        pause = next(p for p in (2.0**n for n in range(10)) if breaker.allows(now + min(p, LONGEST_PAUSE_SECONDS)))
        pauses.append(min(pause, LONGEST_PAUSE_SECONDS))
    assert pauses[:4] == [2.0, 4.0, 8.0, 16.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_an_unreachable_worker_is_left_at_once():
    breaker = CircuitBreaker()
    breaker.failed(0.0, unreachable=True)
    assert not breaker.allows(0.0)


def test_only_failures_of_the_worker_count():
    candidate = Candidate(WorkerKey(InstanceId(1)), InstanceRecord("n", "c", "e", 1))
    for _ in range(10):
        candidate.failed(Overloaded("full"), 0.0, candidate.sent())
        candidate.failed(EngineError("bad request"), 0.0, candidate.sent())
    assert candidate.breaker.allows(0.0)
    for _ in range(FAILURES_TO_OPEN):
        candidate.failed(Disconnected("lost"), 0.0, candidate.sent())
    assert not candidate.breaker.allows(0.0)
    other = Candidate(WorkerKey(InstanceId(2)), InstanceRecord("n", "c", "e", 2))
    other.failed(CannotConnect("nobody"), 0.0, other.sent())
    assert not other.breaker.allows(0.0)


def test_streams_that_fail_together_count_once():
    breaker = CircuitBreaker()
    for _ in range(50):
        breaker.failed(0.0)
    assert breaker.allows(FIRST_PAUSE_SECONDS)


def test_a_probe_without_a_verdict_makes_room_for_the_next():
    breaker = opened()
    probe = breaker.sent()
    assert not breaker.allows(FIRST_PAUSE_SECONDS)
    breaker.ended(probe)
    assert breaker.allows(FIRST_PAUSE_SECONDS)
    assert not breaker.closed


def test_a_request_of_before_says_nothing_of_the_probe():
    breaker = CircuitBreaker()
    old = [breaker.sent() for _ in range(FAILURES_TO_OPEN + 2)]
    for probe in old[:FAILURES_TO_OPEN]:
        breaker.failed(0.0, probe=probe)
    breaker.sent()
    breaker.ended(old[-2])
    breaker.failed(FIRST_PAUSE_SECONDS, probe=old[-1])
    breaker.ended(old[-1])
    assert not breaker.allows(100.0)


def test_the_probe_of_an_earlier_opening_says_nothing_of_the_next_one():
    breaker = opened()
    first = breaker.sent()
    breaker.succeeded()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(0.0)
    second = breaker.sent()
    breaker.ended(first)
    assert not breaker.allows(100.0)
    breaker.ended(second)
    assert breaker.allows(100.0)
