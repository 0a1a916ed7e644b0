"""Tasks are kept while they run, and end with their owner; waiting within a deadline loses no cancellation."""

from __future__ import annotations

import asyncio

import pytest

from dynamo.runtime.tasks import Tasks, within


async def test_cancel_stops_what_runs_and_waits_for_its_end():
    tasks, ended = Tasks(), []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    task = tasks.spawn(work())
    await asyncio.sleep(0)
    await tasks.cancel()
    assert task.cancelled()
    assert ended == [True]
    await tasks.cancel()


async def test_wait_lets_what_was_begun_end():
    tasks, gate = Tasks(), asyncio.Event()

    async def work():
        await gate.wait()

    task = tasks.spawn(work())
    asyncio.get_running_loop().call_soon(gate.set)
    await tasks.wait()
    assert task.done()
    assert not task.cancelled()
    await tasks.wait()


async def test_a_failure_of_one_does_not_reach_the_owner():
    tasks = Tasks()

    async def fail():
        raise ValueError("one")

    tasks.spawn(fail())
    await tasks.cancel()


async def test_within_gives_the_result_or_the_error():
    async def answer():
        return 7

    async def fail():
        raise ValueError("no")

    assert await within(10, answer()) == await within(None, answer()) == 7
    with pytest.raises(ValueError, match="no"):
        await within(10, fail())


async def test_within_ends_what_takes_longer():
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(asyncio.TimeoutError):
        await within(0.001, work())
    assert ended == [True]


@pytest.mark.parametrize("failing", [False, True])
async def test_a_cancellation_together_with_the_result_is_not_lost(failing):
    done = asyncio.get_running_loop().create_future()

    async def work():
        await done

    waiting = asyncio.create_task(within(10, work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if failing:
        done.set_exception(ValueError("no"))
    else:
        done.set_result(None)
    # The work ends in the next pass, and the waiting task hears of it in the one after.
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
