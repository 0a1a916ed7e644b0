"""The one way in which a request is cancelled."""

from __future__ import annotations

import asyncio
import logging

from dynamo.runtime.context import Context


def test_callbacks_run_once_and_in_order():
    context, calls = Context("r"), []
    context.on_cancel(lambda: calls.append(1))
    context.on_cancel(lambda: calls.append(2))
    assert (context.cancelled, calls) == (False, [])
    context.cancel()
    context.cancel()
    assert (context.cancelled, calls) == (True, [1, 2])


def test_a_callback_after_the_fact_runs_at_once():
    context, calls = Context("r"), []
    context.cancel()
    context.on_cancel(lambda: calls.append(context.cancelled))
    assert calls == [True]


def test_a_callback_may_cancel_again_or_add_another():
    context, calls = Context("r"), []
    context.on_cancel(context.cancel)
    context.on_cancel(lambda: context.on_cancel(lambda: calls.append("late")))
    context.cancel()
    assert calls == ["late"]


def test_a_callback_that_fails_does_not_stop_the_others(caplog):
    context, calls = Context("req-7"), []
    context.on_cancel(lambda: 1 / 0)
    context.on_cancel(lambda: calls.append("still"))
    with caplog.at_level(logging.ERROR):
        context.cancel()
    assert calls == ["still"]
    assert "cancel callback of request req-7 failed" in caplog.text


async def test_everybody_who_waits_is_woken():
    context = Context("r")
    waiters = [asyncio.create_task(context.wait_cancelled()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(waiter.done() for waiter in waiters)
    context.cancel()
    await asyncio.wait_for(asyncio.gather(*waiters, context.wait_cancelled()), 5)


def test_facts_of_the_request():
    context = Context("r", deadline_unix_seconds=5.0, trace={"traceparent": "00"})
    assert (context.request_id, context.deadline_unix_seconds, context.trace) == ("r", 5.0, {"traceparent": "00"})
    assert Context("r").trace == {}
