"""Load reports, drain and cleanup."""

from __future__ import annotations

import asyncio

from dynamo.errors import Draining, EngineShutdown
from dynamo.protocols.engine import LoadSource
from dynamo.testing.engine_conformance.cancellation import rest_soon
from dynamo.testing.engine_conformance.check import Checks, expect, fail
from dynamo.testing.engine_conformance.driver import EngineDriver
from dynamo.testing.engine_conformance.refusals import failure_of
from dynamo.testing.engine_conformance.runner import describe_exception
from dynamo.testing.engine_conformance.streams import WELL_FORMED

__all__ = ["drain_checks", "load_checks"]

load_checks = Checks()
drain_checks = Checks()


@load_checks.add("load.counts", needs=["load"], after=["config", "limits.max_tokens"])
async def load_counts(engine: EngineDriver) -> None:
    """load() has one entry per rank; a running request shows in it with its KV blocks, a finished one does not."""
    if not isinstance(engine.engine, LoadSource):
        fail("the engine declares load and has no load()", "implement dynamo.protocols.engine.LoadSource")
    entries = engine.engine.load()
    expect(
        [entry.dp_rank for entry in entries] == list(range(engine.config.dp_size)),
        f"load() has ranks {[entry.dp_rank for entry in entries]}; dp_size is {engine.config.dp_size}",
        "report one EngineLoad per data-parallel rank, in order",
    )
    for entry in entries:
        held = entry.used_kv_blocks + entry.cached_kv_blocks
        expect(
            min(entry.used_kv_blocks, entry.cached_kv_blocks) >= 0 and held <= entry.total_kv_blocks,
            f"{entry.used_kv_blocks} used and {entry.cached_kv_blocks} cached of {entry.total_kv_blocks} KV blocks",
            "count each block once: held by running requests, or only by the cache",
        )
    before = engine.used_blocks()
    stream = engine.open(engine.long_request())
    await stream.first_tokens()
    running = engine.engine.load()
    await stream.rest()
    expect(
        sum(entry.running_requests for entry in running) >= 1 and sum(entry.used_kv_blocks for entry in running) >= 1,
        f"while a stream ran load() said {running}",
        "count running requests and the KV blocks that they hold",
    )
    freed = await engine.soon(lambda: engine.used_blocks() == before)
    expect(
        freed, f"{engine.used_blocks()} KV blocks are in use after the stream, {before} before", "free them at its end"
    )


@drain_checks.add("drain", after=["limits.max_tokens"], spoils=True)
async def drains(engine: EngineDriver) -> None:
    """drain() refuses new requests with Draining, lets running ones finish, and returns when they have."""
    streams = [engine.open(engine.request(max_tokens=24)) for _ in range(2)]
    for stream in streams:
        await stream.first_tokens()
    drain = asyncio.ensure_future(engine.engine.drain(30.0))
    try:
        await _expect_draining(engine)
        for stream in streams:
            rest = await rest_soon(engine, stream, "drain()")
            expect(
                len(rest.ids) == 24 and rest.finish_reason == "length",
                f"a running stream ended after {len(rest.ids)} of 24 ids with {rest.finish_reason!r} during drain()",
                "let running requests finish until the deadline",
            )
        done, _ = await asyncio.wait([drain], timeout=engine.settings.soon_seconds)
        expect(bool(done), "drain() had not returned long after the last stream", "return when idle")
        drain.result()
    finally:
        drain.cancel()


async def _expect_draining(engine: EngineDriver) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + engine.settings.soon_seconds
    await asyncio.sleep(0)
    while (error := await failure_of(engine, engine.request(max_tokens=1))) is None:
        if loop.time() >= deadline:
            fail("requests sent after drain() are served", "raise dynamo.errors.Draining for them")
        await asyncio.sleep(0.05)
    expect(
        isinstance(error, Draining),
        f"a request sent after drain() {describe_exception(error)}",
        "raise dynamo.errors.Draining, which sends the request to another worker",
    )


@drain_checks.add("drain.deadline", after=["drain"], spoils=True)
async def drain_has_a_deadline(engine: EngineDriver) -> None:
    """drain() returns after its deadline even if a request still runs."""
    stream = engine.open(engine.long_request())
    await stream.first_tokens()
    drain = asyncio.ensure_future(engine.engine.drain(0.2))
    done, _ = await asyncio.wait([drain], timeout=engine.settings.soon_seconds)
    drain.cancel()
    expect(
        bool(done),
        f"drain(0.2) had not returned after {engine.settings.soon_seconds:g} s",
        "give up at deadline_seconds",
    )
    await stream.close()


@drain_checks.add("cleanup.open_streams", after=WELL_FORMED, spoils=True)
async def cleanup_ends_streams(engine: EngineDriver) -> None:
    """Streams that are open at cleanup() end with EngineShutdown, so that another worker can go on with them."""
    stream = engine.open(engine.long_request())
    await stream.first_tokens()
    cleanup = asyncio.ensure_future(engine.engine.cleanup())
    try:
        rest = await rest_soon(engine, stream, "cleanup()")
    except EngineShutdown:
        await cleanup
        return
    fail(
        f"the stream ended with {rest.finish_reason!r} after {len(rest.ids)} ids",
        "raise dynamo.errors.EngineShutdown from the iterators of open streams",
    )


@drain_checks.add("cleanup.idempotent", spoils=True)
async def cleanup_twice(engine: EngineDriver) -> None:
    """cleanup() may be called again and again."""
    for _ in range(3):
        await engine.engine.cleanup()
