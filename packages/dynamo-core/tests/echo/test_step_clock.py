from __future__ import annotations

import asyncio

from dynamo.echo.step_clock import StepClock


async def test_all_that_wait_go_on_together() -> None:
    clock = StepClock(0.005)
    steps = [clock.next_step() for _ in range(3)]
    assert not any(step.done() for step in steps)
    await asyncio.wait_for(steps[0], 5)
    assert all(step.done() for step in steps)


async def test_who_stopped_waiting_is_left_out() -> None:
    clock = StepClock(0.005)
    gone, cancelled, waiting = (clock.next_step() for _ in range(3))
    gone.set_result(None)
    cancelled.cancel()
    await asyncio.wait_for(waiting, 5)
    assert waiting.result() is None


async def test_steps_keep_their_pace() -> None:
    clock = StepClock(0.002)
    loop = asyncio.get_running_loop()
    await clock.next_step()
    start = loop.time()
    for _ in range(5):
        await asyncio.wait_for(clock.next_step(), 5)
    assert loop.time() - start >= 0.008  # four whole steps at least: the first may be due at once
