"""NATS goes away under load: events wait, requests go over tcp, streams that it carried move."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.load import STREAMS
from tests.chaos.test_workers import PACE, idle
from tests.e2e.processes import deployment

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("request_plane", "how"),
    [
        ("nats", "killed"),
        pytest.param("nats", "hung", marks=pytest.mark.slow),
        pytest.param("tcp", "killed", marks=pytest.mark.slow),
    ],
)
async def test_nats_is_away(tmp_path, own_nats_server, record, long_run, request_plane, how, start_load):
    env = {"NATS_SERVER": own_nats_server.url, "DYN_REQUEST_PLANE": request_plane, "DYN_EVENT_PLANE": "nats"}
    with deployment(tmp_path, env) as deploy:
        workers = [deploy.worker(*PACE) for _ in range(2)]
        frontend = deploy.frontend()
        deploy.until_serving(frontend, workers=2)
        load = start_load([frontend.url])
        await load.until_all_stream()
        load.fault()
        (own_nats_server.kill if how == "killed" else own_nats_server.pause)()
        await asyncio.sleep(60 if long_run else 1)
        await load.until_completed(2 * STREAMS)
        await asyncio.to_thread(own_nats_server.start if how == "killed" else own_nats_server.resume)
        await load.until_completed(2 * STREAMS)
        report = record(await load.finish(), f"NATS is {how}, requests over {request_plane}")
        assert report.counts() == (0, 0, 0, 0), report
        await idle(*workers)
