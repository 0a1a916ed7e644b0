from __future__ import annotations

import asyncio
import logging

import pytest

from dynamo.errors import Draining, InvalidRequest
from dynamo.worker.open_streams import OpenStreams


async def test_an_id_is_used_once_at_a_time():
    streams: OpenStreams[int] = OpenStreams()
    streams.check("a")
    streams.open("a", 1)
    assert (len(streams), list(streams), streams.get("a"), streams.get("b")) == (1, [1], 1, None)
    with pytest.raises(InvalidRequest, match="'a' is in use"):
        streams.check("a")
    streams.close("a")
    streams.check("a")
    assert streams.get("a") is None


async def test_a_drain_refuses_and_waits_for_the_last():
    streams: OpenStreams[int] = OpenStreams()
    for name in ("a", "b"):
        streams.open(name, 0)
    drain = asyncio.ensure_future(streams.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        streams.check("c")
    streams.close("a")
    await asyncio.sleep(0)
    assert not drain.done()
    streams.close("b")
    await asyncio.wait_for(drain, 10)


async def test_a_drain_has_a_deadline(caplog: pytest.LogCaptureFixture):
    streams: OpenStreams[int] = OpenStreams()
    await streams.drain(0)  # nothing runs
    streams.open("a", 0)
    with caplog.at_level(logging.WARNING):
        await streams.drain(0.001)
    assert "1 requests were still running" in caplog.text
