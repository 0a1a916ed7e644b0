"""Windows of a minute: what is left, who pays, and that two processes share one limit."""

from __future__ import annotations

import sqlite3

import pytest

from dynamo.errors import ConfigError, RateLimited
from dynamo.frontend.security.rate_limits import Budget, Meter
from dynamo.frontend.security.windows import MemoryWindows, SqliteWindows

NOON = 12 * 3600.0


class Clock:
    """Unix time that a test sets."""

    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = MemoryWindows() if request.param == "memory" else SqliteWindows(tmp_path / "deep" / "windows.sqlite")
    yield made
    made.close()


def admitted(budget, attempts):
    count = 0
    for _ in range(attempts):
        try:
            budget.admit()
        except RateLimited:
            continue
        count += 1
    return count


@pytest.mark.parametrize("limit", [1, 2, 63, 64, 65, 1000])
def test_exactly_the_limit_is_admitted_in_each_window(store, limit, clock):
    budget = Budget("a", limit, None, store, clock)
    assert admitted(budget, limit + 10) == limit
    clock.now = NOON + 59
    assert admitted(budget, limit + 10) == 0
    clock.now = NOON + 60
    assert admitted(budget, limit + 10) == limit


def test_two_processes_share_a_limit(tmp_path, clock):
    stores = [SqliteWindows(tmp_path / "windows.sqlite") for _ in range(2)]
    budgets = [Budget("a", 640, None, store, clock) for store in stores]
    total = sum(admitted(budgets[turn % 2], 1) for turn in range(2000))
    assert total == 640
    for store in stores:
        store.close()


def test_what_a_process_leased_and_did_not_use_is_at_most_a_slice(tmp_path, clock):
    stores = [SqliteWindows(tmp_path / "windows.sqlite") for _ in range(2)]
    busy, idle = (Budget("a", 6400, None, store, clock) for store in stores)
    assert admitted(idle, 1) == 1
    assert admitted(busy, 7000) == 6400 - 100
    for store in stores:
        store.close()


def test_keys_do_not_share(store, clock):
    first, second = Budget("a", 1, None, store, clock), Budget("b", 1, None, store, clock)
    assert (admitted(first, 3), admitted(second, 3)) == (1, 1)


def test_tokens_are_paid_at_the_end_and_refused_when_used_up(store, clock):
    budget = Budget("a", None, 100, store, clock)
    budget.admit()
    budget.charge(250)
    clock.now = NOON + 5
    with pytest.raises(RateLimited) as caught:
        budget.admit()
    assert caught.value.reason == "rate_limit_exceeded"
    assert caught.value.retry_after_seconds == 55
    assert "100 tokens per minute" in caught.value.message
    clock.now = NOON + 60
    budget.admit()


def test_a_request_without_tokens_left_costs_no_request(store, clock):
    budget = Budget("a", 5, 10, store, clock)
    budget.charge(10)
    assert admitted(budget, 3) == 0
    assert b"x-ratelimit-remaining-requests: 5" in budget.headers()
    clock.now = NOON + 60
    assert admitted(budget, 3) == 3
    budget.charge(10)
    clock.now = NOON + 120
    assert b"x-ratelimit-remaining-requests: 5" in budget.headers()


def test_headers_count_down(store, clock):
    budget = Budget("a", 1000, 10_000, store, clock)
    for _ in range(30):
        budget.admit()
    clock.now = NOON + 13.5
    budget.charge(1234)
    lines = dict(line.split(": ") for line in budget.headers().decode().splitlines())
    assert lines == {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "970",
        "x-ratelimit-reset-requests": "47s",
        "x-ratelimit-limit-tokens": "10000",
        "x-ratelimit-remaining-tokens": "8766",
        "x-ratelimit-reset-tokens": "47s",
    }


def test_a_clock_that_goes_back_begins_another_window(store, clock):
    budget = Budget("a", 1, None, store, clock)
    assert admitted(budget, 2) == 1
    clock.now = NOON - 60
    assert admitted(budget, 2) == 1


def test_the_store_is_asked_a_bounded_number_of_times():
    class Counting(MemoryWindows):
        calls = 0

        def lease(self, *arguments):
            self.calls += 1
            return super().lease(*arguments)

    store = Counting()
    meter = Meter("a/requests", 60_000, store)
    for _ in range(70_000):
        if meter.available(NOON):
            meter.spend(1, NOON)
    assert store.calls <= 70


def test_old_windows_are_forgotten(tmp_path, clock):
    store = SqliteWindows(tmp_path / "windows.sqlite")
    budget = Budget("a", 10, None, store, clock)
    for minute in range(50):
        clock.now = NOON + 60 * minute
        budget.admit()
    with sqlite3.connect(tmp_path / "windows.sqlite") as database:
        assert database.execute("SELECT count(*) FROM windows").fetchone() == (1,)
    database.close()
    store.close()


def test_a_process_that_holds_the_lock_does_not_stop_the_others(tmp_path, caplog, clock):
    store = SqliteWindows(tmp_path / "windows.sqlite")
    other = sqlite3.connect(tmp_path / "windows.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    budget = Budget("a", 3, None, store, clock)
    assert admitted(budget, 10) == 3
    assert caplog.text.count("counted by this process alone") == 1
    other.execute("COMMIT")
    other.close()
    clock.now = NOON + 60
    assert admitted(budget, 10) == 3
    store.close()


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "windows.sqlite").write_text("not a database, " * 100)
    with pytest.raises(ConfigError, match="rate limits") as caught:
        SqliteWindows(tmp_path / "windows.sqlite")
    assert "--state-dir" in caught.value.hint
