"""The network between a frontend and one of its workers is cut, for a moment and for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.load import STREAMS
from tests.chaos.partition import Partition
from tests.chaos.test_workers import PACE, idle

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_the_network_is_cut_and_comes_back(deploy, record, long_run, start_load):
    """Whoever was cut off is lost after four silent keep-alive intervals of 2 s; a shorter cut is only a pause."""
    deploy.env["DYN_TCP_RPC_HOST"] = "unix"
    workers = [deploy.worker(*PACE) for _ in range(2)]
    for worker in workers:
        await asyncio.to_thread(worker.until_ready)
    sockets = sorted(Path(deploy.env["DYN_STATE_DIR"]).glob("planes/*.sock"))
    assert len(sockets) == 2
    async with Partition(sockets[0]) as network:
        frontend = deploy.frontend()
        await asyncio.to_thread(deploy.until_serving, frontend, 2)
        load = start_load([frontend.url])
        await load.until_all_stream()
        network.cut()
        await asyncio.sleep(1)
        network.heal()
        await load.until_completed(STREAMS)
        assert frontend.metric("dynamo_frontend_migrations_total") == 0
        await load.until_all_stream()
        load.fault()
        network.cut()
        open_now = load.open_streams()
        await load.until(lambda: all(stream.ended for stream in open_now), 40)
        if long_run:
            await asyncio.sleep(60)
        network.heal()
        await load.until_completed(2 * STREAMS)
        report = record(await load.finish())
        assert report.counts() == (0, 0, 0, 0), report
        assert frontend.metric("dynamo_frontend_migrations_total") >= 1
        await idle(*workers)
