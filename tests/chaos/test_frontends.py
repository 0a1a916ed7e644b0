"""Frontends die and drain under load: only their own clients notice, and only of a dead one."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.chaos.load import STREAMS
from tests.chaos.test_workers import PACE, idle
from tests.e2e.processes import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_a_frontend_is_killed_and_started_again_on_its_port(deploy, record, start_load):
    worker = deploy.worker(*PACE)
    victim, other = deploy.frontend(), deploy.frontend()
    for frontend in (victim, other):
        deploy.until_serving(frontend)
    unlucky, lucky = start_load([victim.url], streams=STREAMS // 2), start_load([other.url], streams=STREAMS // 2)
    await asyncio.gather(unlucky.until_all_stream(), lucky.until_all_stream())
    for load in (unlucky, lucky):
        load.fault()
    victim.kill()
    await unlucky.until(lambda: all(s.ended for s in unlucky.streams if s.arrivals), 5)
    # Their engine requests end with them: what still runs belongs to the other frontend.
    gauge = "dynamo_component_running_requests"
    await asyncio.to_thread(wait_until, lambda: worker.metric(gauge) <= STREAMS // 2, "freed requests", worker)
    victim.start()
    await asyncio.to_thread(deploy.until_serving, victim)
    await unlucky.until_all_stream()
    mine = record(await unlucky.finish(), "a frontend is killed: its clients")
    theirs = record(await lucky.finish(), "a frontend is killed: the others")
    assert theirs.counts() == (0, 0, 0, 0), theirs
    assert mine.broken >= STREAMS // 2
    assert mine.wrong == 0
    assert mine.completed >= STREAMS // 2
    await idle(worker)


async def test_frontends_are_restarted_one_by_one_behind_a_balancer(deploy, record, start_load):
    """Clients that keep their connections, as balancers do, end what is open there and go to another frontend."""
    worker = deploy.worker(*PACE)
    frontends = [deploy.frontend("--drain-grace-seconds", "20") for _ in range(2)]
    for frontend in frontends:
        deploy.until_serving(frontend)
    stop = asyncio.Event()
    async with httpx.AsyncClient(timeout=30) as client:
        clients = [asyncio.create_task(_ask(client, [f.url for f in frontends], stop)) for _ in range(20)]
        for frontend in frontends:
            await asyncio.sleep(0.3)
            assert await asyncio.to_thread(frontend.stop) == 0, frontend.text()
            frontend.start()
            await asyncio.to_thread(deploy.until_serving, frontend)
        stop.set()
        answers = [answer for answers in await asyncio.gather(*clients) for answer in answers]
    assert answers
    assert set(answers) == {PROMPT}
    await idle(worker)


PROMPT = " ".join(f"word{number}" for number in range(20))


async def _ask(client: httpx.AsyncClient, urls: list[str], stop: asyncio.Event) -> list[str]:
    """Texts of whole answers; a frontend that does not listen is passed over, one that breaks an answer is not."""
    texts = []
    while not stop.is_set():
        for url in urls:
            try:
                answer = await client.post(f"{url}/v1/completions", json={"model": "echo", "prompt": PROMPT})
            except httpx.ConnectError:
                continue
            texts.append(answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text)
            break
    return texts
