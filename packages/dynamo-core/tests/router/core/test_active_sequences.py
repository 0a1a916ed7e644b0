"""Booked load: never negative, nothing left behind, shared blocks once, reports of workers taken in."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.router.core.active_sequences import ActiveSequences

LIFETIME = 100.0


def test_a_request_is_prefill_until_its_first_token_and_blocks_until_its_end():
    active = ActiveSequences(LIFETIME)
    booking = active.book(500, [1, 2, 3], 0.0)
    assert (active.prefill_tokens, active.decode_blocks, len(active)) == (500, 3, 1)
    booking.prefill_done()
    booking.prefill_done()
    assert (active.prefill_tokens, active.decode_blocks, len(active)) == (0, 3, 1)
    booking.end()
    booking.end()
    assert (active.prefill_tokens, active.decode_blocks, len(active)) == (0, 0, 0)


def test_a_request_may_end_without_a_token():
    active = ActiveSequences(LIFETIME)
    active.book(500, [1], 0.0).end()
    assert (active.prefill_tokens, active.decode_blocks) == (0, 0)


def test_shared_blocks_count_once():
    active = ActiveSequences(LIFETIME)
    one, other = active.book(0, [1, 2, 3], 0.0), active.book(0, [1, 2, 9], 0.0)
    assert active.decode_blocks == 4
    one.end()
    assert active.decode_blocks == 3
    assert active.shared_blocks([1, 2, 3], 0) == 2
    other.end()
    assert active.decode_blocks == 0


@given(st.integers(0, 12), st.integers(0, 14), st.integers(0, 12))
def test_the_shared_part_is_found_whatever_is_guessed(held, guess, asked):
    active = ActiveSequences(LIFETIME)
    active.book(0, list(range(held)), 0.0)
    assert active.shared_blocks(list(range(asked)), guess) == min(held, asked)


def test_what_a_worker_reports_beyond_our_bookings_is_others_load():
    active = ActiveSequences(LIFETIME)
    booking = active.book(300, [1, 2], 0.0)
    active.correct(1000, 10, 0.0)
    assert (active.prefill_tokens, active.decode_blocks) == (1000, 10)
    active.book(100, [7], 0.0)
    assert (active.prefill_tokens, active.decode_blocks) == (1100, 11)
    booking.end()
    assert (active.prefill_tokens, active.decode_blocks) == (800, 9)


def test_a_late_report_does_not_hide_what_was_just_sent():
    active = ActiveSequences(LIFETIME)
    active.book(300, [1, 2], 0.0)
    active.correct(0, 0, 0.0)
    assert (active.prefill_tokens, active.decode_blocks) == (300, 2)


def test_lost_ends_expire_in_their_time():
    active = ActiveSequences(LIFETIME)
    lost = active.book(300, [1, 2], 0.0)
    active.book(50, [3], 60.0)
    active.expire(99.9)
    assert len(active) == 2
    active.expire(100.0)
    assert (active.prefill_tokens, active.decode_blocks, active.expired) == (50, 1, 1)
    lost.prefill_done()
    lost.end()
    assert (active.prefill_tokens, active.decode_blocks) == (50, 1)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_random_lives_leave_nothing(seed):
    """20,000 lives each: tokens come or not, ends are lost, workers crash and report nonsense."""
    rng = random.Random(seed)
    workers = [ActiveSequences(LIFETIME) for _ in range(4)]
    bookings = []
    for step in range(20_000):
        now = step * 0.05
        number = rng.randrange(4)
        worker = workers[number]
        start = rng.randrange(5) * 100
        bookings.append(worker.book(rng.randrange(2000), list(range(start, start + rng.randrange(12))), now))
        event = rng.random()
        if event < 0.001:
            workers[number] = ActiveSequences(LIFETIME)
        elif event < 0.1:
            worker.correct(rng.randrange(5000), rng.randrange(100), now)
        for booking in rng.sample(bookings, min(3, len(bookings))):
            rng.choice((booking.prefill_done, booking.end, booking.end))()
        if len(bookings) > 200:
            del bookings[rng.randrange(len(bookings))]
        for each in workers:
            each.expire(now)
            assert each.prefill_tokens >= 0
            assert each.decode_blocks >= 0
    for worker in workers:
        worker.expire(1e9)
        assert (len(worker), worker.prefill_tokens, worker.decode_blocks) == (0, 0, 0)


def test_a_report_is_believed_for_a_while():
    active = ActiveSequences(LIFETIME)
    active.correct(10**9, 10**9, 5.0)
    active.expire(20.0)
    assert (active.prefill_tokens, active.decode_blocks) == (10**9, 10**9)
    active.expire(20.1)
    assert (active.prefill_tokens, active.decode_blocks) == (0, 0)
