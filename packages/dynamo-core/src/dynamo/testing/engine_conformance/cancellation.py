"""Requests that end before their time: abort, cancel, a closed iterator, and all of it at once."""

from __future__ import annotations

import asyncio
import contextlib

from dynamo.errors import Overloaded
from dynamo.testing.engine_conformance.agreement import disagreement
from dynamo.testing.engine_conformance.check import Checks, expect, fail
from dynamo.testing.engine_conformance.driver import EngineDriver, Generation, OpenStream
from dynamo.testing.engine_conformance.streams import WELL_FORMED

__all__ = ["checks", "rest_soon"]

_STORM = 256

checks = Checks()


async def rest_soon(engine: EngineDriver, stream: OpenStream, event: str) -> Generation:
    """The rest of a stream that must end soon after `event`."""
    seconds = engine.settings.soon_seconds
    task = asyncio.ensure_future(stream.rest())
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        fail(f"the stream had not ended {seconds:g} s after {event}", f"let {event} wake up whoever waits for tokens")
    return task.result()


def _expect_cancelled(stream: Generation, event: str) -> None:
    expect(
        stream.finish_reason == "cancelled",
        f"after {event} the stream went on to {len(stream.ids)} ids and ended with {stream.finish_reason!r}",
        f'{event} stops the request; its iterator ends with finish_reason "cancelled"',
    )
    expect(stream.outputs[-1].usage is not None, f"no usage after {event}", "give usage with every finish_reason")


async def _expect_freed(engine: EngineDriver, before: int | None, event: str) -> None:
    freed = await engine.soon(lambda: engine.used_blocks() == before)
    expect(
        freed,
        f"load() showed {before} used KV blocks before and still shows {engine.used_blocks()} after {event}",
        f"free the KV blocks of a request at {event}, without waiting for its reader",
    )


@checks.add("abort.ends", after=WELL_FORMED)
async def abort_ends_the_stream(engine: EngineDriver) -> None:
    """abort() ends a running stream soon, with finish_reason "cancelled" and usage."""
    stream = engine.open(engine.long_request())
    await stream.first_tokens()
    await engine.engine.abort(stream.request.request_id)
    _expect_cancelled(await rest_soon(engine, stream, "abort()"), "abort()")


@checks.add("abort.at_once", after=["abort.ends"])
async def abort_before_the_first_token(engine: EngineDriver) -> None:
    """A request can be aborted as soon as its iterator was asked for the first output."""
    stream = engine.open(engine.long_request())
    first = asyncio.ensure_future(stream.next())
    await asyncio.sleep(0)
    await engine.engine.abort(stream.request.request_id)
    done, _ = await asyncio.wait([first], timeout=engine.settings.soon_seconds)
    if not done:
        first.cancel()
        fail("the first output did not come after abort()", "let abort() wake up whoever waits for tokens")
    _expect_cancelled(await rest_soon(engine, stream, "abort()"), "abort()")


@checks.add("abort.frees_kv", needs=["load"], after=["abort.ends", "load.counts"])
async def abort_frees_blocks(engine: EngineDriver) -> None:
    """abort() frees the KV blocks of a request, even if nobody reads its stream any more."""
    before = engine.used_blocks()
    stream = engine.open(engine.long_request())
    await stream.first_tokens()
    await engine.engine.abort(stream.request.request_id)
    await _expect_freed(engine, before, "abort()")
    await rest_soon(engine, stream, "abort()")


@checks.add("abort.idempotent", after=["abort.ends"])
async def abort_twice(engine: EngineDriver) -> None:
    """abort() of an unknown, a finished or an already aborted request does nothing."""
    finished = await engine.run(engine.request())
    stream = engine.open(engine.long_request())
    await stream.first_tokens()
    running = stream.request.request_id
    for request_id in ("conformance-unknown", finished.request.request_id, running, running):
        await engine.engine.abort(request_id)
    await rest_soon(engine, stream, "abort()")
    await engine.engine.abort(running)


@checks.add("cancel.ends", after=["abort.ends"])
async def cancel_ends_the_stream(engine: EngineDriver) -> None:
    """When the context is cancelled and abort() called, the iterator ends with finish_reason "cancelled"."""
    stream = engine.open(engine.long_request())
    await stream.first_tokens()
    await stream.cancel()
    _expect_cancelled(await rest_soon(engine, stream, "a cancel"), "a cancel")


@checks.add("close.frees_kv", needs=["load"], after=["abort.frees_kv"])
async def closing_frees_blocks(engine: EngineDriver) -> None:
    """Closing the iterator early counts as abort(): the KV blocks are freed."""
    before = engine.used_blocks()
    stream = engine.open(engine.long_request())
    await stream.first_tokens()
    if not await stream.close():
        fail("the iterator of generate() has no aclose()", "write generate() as an async generator")
    await _expect_freed(engine, before, "closing the iterator")


@checks.add(
    "cancel.storm",
    after=["close.frees_kv", "abort.at_once", "abort.idempotent", "cancel.ends", "determinism.greedy"],
)
async def survives_a_storm(engine: EngineDriver) -> str:
    """Hundreds of requests that are aborted, cancelled and closed at random moments leave nothing behind."""
    before = engine.used_blocks()
    prompt = engine.prompt()
    calm = await engine.greedy(prompt)
    await asyncio.gather(*(_one_of_the_storm(engine) for _ in range(_STORM)))
    if before is not None:
        await _expect_freed(engine, before, f"a storm of {_STORM} cancelled requests")
    difference = disagreement(calm, (await engine.greedy(prompt)).ids)
    expect(difference is None, f"a greedy stream differs after the storm: {difference}", "keep requests apart")
    return f"{_STORM} requests"


async def _one_of_the_storm(engine: EngineDriver) -> None:
    stream = engine.open(engine.request(max_tokens=engine.random.randrange(1, 33)))
    way = engine.random.choice(("abort", "cancel", "close", "interrupt"))
    with contextlib.suppress(Overloaded):
        for _ in range(engine.random.randrange(4)):
            if await stream.next() is None:
                return
        if way == "abort":
            await engine.engine.abort(stream.request.request_id)
        elif way == "cancel":
            await stream.cancel()
        elif way == "interrupt":
            await _interrupt(stream, engine.random.random() * 0.02)
        if way in ("close", "interrupt"):
            await stream.close()
        else:
            await stream.rest()


async def _interrupt(stream: OpenStream, seconds: float) -> None:
    """Cancel the task that reads the stream, as happens when a connection handler is torn down."""
    reader = asyncio.ensure_future(stream.rest())
    await asyncio.wait([reader], timeout=seconds)
    reader.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reader
