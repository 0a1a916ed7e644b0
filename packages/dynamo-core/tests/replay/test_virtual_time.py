"""Alarms ring in order, at their time, once, and not when they were cancelled."""

from __future__ import annotations

from dynamo.replay.virtual_time import VirtualTime


def test_alarms_ring_in_order_of_their_time():
    time, rung = VirtualTime(), []
    time.move(10.0)
    for seconds in (5.0, 1.0, 3.0):
        time.call_later(seconds, lambda seconds=seconds: rung.append((seconds, time.now())))
    while time.next_alarm() < float("inf"):
        time.ring()
    assert rung == [(1.0, 11.0), (3.0, 13.0), (5.0, 15.0)]


def test_equal_times_ring_in_the_order_of_asking():
    time, rung = VirtualTime(), []
    for name in "abc":
        time.call_later(1.0, lambda name=name: rung.append(name))
    for _ in "abc":
        time.ring()
    assert rung == ["a", "b", "c"]


def test_a_cancelled_alarm_is_not_next():
    time, rung = VirtualTime(), []
    first = time.call_later(1.0, lambda: rung.append("first"))
    time.call_later(2.0, lambda: rung.append("second"))
    first.cancel()
    assert time.next_alarm() == 2.0
    time.ring()
    assert rung == ["second"]
    assert time.next_alarm() == float("inf")
