"""How engine time becomes real time."""

from __future__ import annotations

import asyncio

import pytest

from dynamo.mocker.rank import Pace


class _Time:
    """A clock that moves only when somebody sleeps, and then by `late` too much."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 100.0
        self.late = late
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.late


async def test_steps_take_their_time_divided_by_the_ratio() -> None:
    time = _Time()
    pace = Pace(10.0, time.clock, time.sleep)
    pace.begin()
    before = pace.now()
    await pace.spend(1.0)
    await pace.spend(3.0)
    assert time.slept == pytest.approx([0.1, 0.3])
    assert pace.now() - before == pytest.approx(4.0)


async def test_sleeps_that_are_too_long_are_made_up_for() -> None:
    time = _Time(late=0.03)
    pace = Pace(1.0, time.clock, time.sleep)
    pace.begin()
    for _ in range(3):
        await pace.spend(0.1)
    assert time.slept == pytest.approx([0.1, 0.07, 0.07])


async def test_what_a_long_stall_cost_is_not_hurried_after() -> None:
    time = _Time()
    pace = Pace(1.0, time.clock, time.sleep)
    pace.begin()
    time.now += 60
    for _ in range(3):
        await pace.spend(0.08)
    assert time.slept == pytest.approx([0.0, 0.06, 0.08])


async def test_after_a_rest_nothing_is_owed() -> None:
    time = _Time()
    pace = Pace(1.0, time.clock, time.sleep)
    pace.begin()
    time.now += 0.05
    pace.begin()
    await pace.spend(0.2)
    assert time.slept == pytest.approx([0.2])


async def test_without_a_ratio_time_jumps() -> None:
    time = _Time()
    pace = Pace(0.0, time.clock, time.sleep)
    await pace.spend(5.0)
    await pace.wait(asyncio.Event(), 12.0)
    await pace.wait(asyncio.Event(), 3.0)
    assert (pace.now(), time.now) == (12.0, 100.0)


async def test_a_wait_ends_when_something_is_added() -> None:
    time = _Time()
    pace, added = Pace(1.0, time.clock, time.sleep), asyncio.Event()
    waiting = asyncio.ensure_future(pace.wait(added, None))
    await asyncio.sleep(0)
    assert not waiting.done()
    added.set()
    await asyncio.wait_for(waiting, 10)
