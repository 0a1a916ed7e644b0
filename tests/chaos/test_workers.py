"""Workers die, hang and restart under load: no stream breaks, none says anything else than it must."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.chaos.load import STREAMS
from tests.e2e.processes import Deployment, Frontend, Process, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.timeout(300)]

#: Streams of about 100 tokens last a second.
PACE = ["--tokens-per-second", "100"]


async def idle(*workers: Process) -> None:
    """Wait until the engines of `workers` hold nothing."""
    for worker in workers:
        for gauge in ("dynamo_component_running_requests", "dynamo_component_used_kv_blocks"):
            await asyncio.to_thread(wait_until, lambda w=worker, g=gauge: not w.metric(g), f"no {gauge}", worker)


def workers_and_frontend(deploy: Deployment, *flags: str, count: int = 2) -> tuple[list[Process], Frontend]:
    workers = [deploy.worker(*(flags or PACE)) for _ in range(count)]
    frontend = deploy.frontend()
    deploy.until_serving(frontend, workers=count)
    return workers, frontend


async def test_a_worker_is_killed(deploy, record, start_load):
    workers, frontend = workers_and_frontend(deploy)
    load = start_load([frontend.url])
    await load.until_all_stream()
    load.fault()
    workers[0].kill()
    await load.until_completed(STREAMS)
    report = record(await load.finish())
    assert report.counts() == (0, 0, 0, 0), report
    assert frontend.metric("dynamo_frontend_migrations_total") >= 1
    await idle(workers[1])


@pytest.mark.slow
async def test_two_workers_are_killed_in_a_row(deploy, record, start_load):
    workers, frontend = workers_and_frontend(deploy, count=3)
    load = start_load([frontend.url])
    await load.until_all_stream()
    load.fault()
    workers[0].kill()
    workers[1].kill()
    await load.until_completed(STREAMS)
    report = record(await load.finish())
    assert report.counts() == (0, 0, 0, 0), report
    await idle(workers[2])


async def test_a_worker_is_killed_before_the_first_token(deploy, record, start_load):
    workers, frontend = workers_and_frontend(deploy, "--delay-ms", "1000")
    load = start_load([frontend.url])
    await load.until(lambda: len(load.open_streams()) == STREAMS, 10)
    await asyncio.to_thread(
        wait_until, lambda: workers[0].metric("dynamo_component_running_requests") > 0, "requests at the victim"
    )
    load.fault()
    workers[0].kill()
    report = record(await load.finish())
    assert report.counts() == (0, 0, 0, 0), report
    assert report.completed == STREAMS


@pytest.mark.slow
async def test_a_killed_worker_comes_back_again_and_again(deploy, record, long_run, start_load):
    """Every worker in turn, started again at once: a new instance that serves, while the old one's record goes."""
    workers, frontend = workers_and_frontend(deploy)
    load = start_load([frontend.url])
    for number in range(10 if long_run else 3):
        worker = workers[number % 2]
        await load.until_all_stream()
        load.fault()
        worker.kill()
        worker.start()
        await asyncio.to_thread(worker.until_ready)
        await asyncio.to_thread(deploy.until_serving, frontend, 2)
    report = record(await load.finish())
    assert report.counts() == (0, 0, 0, 0), report
    await idle(*workers)


async def test_a_worker_hangs_and_wakes_up(deploy, record, start_load):
    """SIGSTOP: its sockets stay open and its process exists, so that only its silence tells."""
    workers, frontend = workers_and_frontend(deploy)
    load = start_load([frontend.url])
    await load.until_all_stream()
    load.fault()
    workers[0].send(signal.SIGSTOP)
    await load.until(lambda: all(stream.arrivals for stream in load.open_streams()[-STREAMS:]), 30)
    await load.until_completed(2 * STREAMS)
    workers[0].send(signal.SIGCONT)
    await asyncio.to_thread(deploy.until_serving, frontend, 2)
    await load.until_completed(STREAMS)
    report = record(await load.finish())
    assert report.counts() == (0, 0, 0, 0), report
    await idle(*workers)


@pytest.mark.parametrize(
    "grace",
    [
        pytest.param("30", id="streams may end", marks=pytest.mark.slow),
        pytest.param("0.5", id="streams are handed over"),
    ],
)
async def test_all_workers_are_restarted_one_by_one(deploy, record, grace, start_load):
    workers, frontend = workers_and_frontend(deploy, *PACE, "--drain-grace-seconds", grace)
    load = start_load([frontend.url])
    await load.until_all_stream()
    for number, old in enumerate(workers):
        deploy.worker(*PACE)
        await asyncio.to_thread(deploy.until_serving, frontend, 3)
        if not number:
            load.fault()
        assert await asyncio.to_thread(old.stop) == 0, old.text()
        await asyncio.to_thread(deploy.until_serving, frontend, 2)
    await load.until_completed(STREAMS)
    report = record(await load.finish())
    assert report.counts() == (0, 0, 0, 0), report
    await idle(*deploy.processes[3:])
