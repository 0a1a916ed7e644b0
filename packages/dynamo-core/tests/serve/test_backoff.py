import os

import pytest

from dynamo.serve.backoff import Backoff, RestartPolicy
from dynamo.serve.launcher import EXIT_CANNOT_START

POLICY = RestartPolicy(first_delay_seconds=1, max_delay_seconds=8, stable_after_seconds=60, max_failed_starts=3)


def delays(backoff, count, **what):
    return [backoff.delay_seconds(1, **what) for _ in range(count)]


def test_delay_doubles_up_to_the_limit():
    assert delays(Backoff(POLICY), 6, was_ready=True, uptime_seconds=5) == [1, 2, 4, 8, 8, 8]


def test_a_stable_life_starts_over():
    backoff = Backoff(POLICY)
    delays(backoff, 4, was_ready=True, uptime_seconds=5)
    assert backoff.delay_seconds(1, was_ready=True, uptime_seconds=60) == 1


def test_a_long_life_without_being_ready_does_not_start_over():
    backoff = Backoff(POLICY)
    backoff.delay_seconds(1, was_ready=True, uptime_seconds=5)
    assert backoff.delay_seconds(1, was_ready=False, uptime_seconds=600) == 2


def test_gives_up_what_never_was_ready():
    assert delays(Backoff(POLICY), 3, was_ready=False, uptime_seconds=5) == [1, 2, None]


def test_never_gives_up_what_was_ready_once():
    backoff = Backoff(POLICY)
    backoff.delay_seconds(-9, was_ready=True, uptime_seconds=5)
    assert None not in delays(backoff, 2000, was_ready=False, uptime_seconds=0)


@pytest.mark.parametrize("code", [os.EX_CONFIG, EXIT_CANNOT_START])
@pytest.mark.parametrize("was_ready", [True, False])
def test_an_error_that_stays_is_given_up_at_once(code, was_ready):
    assert Backoff(POLICY).delay_seconds(code, was_ready=was_ready, uptime_seconds=5) is None
