"""Requests that wait for a worker to claim them: what may happen meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.claims import Claim
from dynamo.runtime.request_plane.tcp import TcpRequestPlane

COMPLETIONS = "/v1/completions"
ASK = {"model": "echo", "prompt": "hello"}


class ClaimingTcpPlane(TcpRequestPlane):
    """The test is the broker: it answers what is asked when it wants."""

    def __init__(self, options) -> None:
        super().__init__(options)
        self.asked: asyncio.Queue[asyncio.Future[Claim | None]] = asyncio.Queue()

    def claim(self, instances):
        answer = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        return answer


@pytest.fixture
async def deployment(make_deployment):
    made = await make_deployment(
        {"backend": "echo"},
        {"backend": "echo"},
        router={"router_mode": "random", "explain": True},
        make_plane=ClaimingTcpPlane,
    )
    await made.serves("echo", workers=2)
    return made


def workers(deployment) -> list[int]:
    return [runtime.instance_id for runtime, _ in deployment._running[:2]]


def busy(deployment) -> int:
    candidates = deployment.frontend.models.names()["echo"].candidates.candidates()
    return sum(candidate.active_requests for candidate in candidates)


def in_work(deployment) -> float | None:
    return deployment.frontend_runtime.metrics.get_sample_value("dynamo_frontend_inflight_requests", {"model": "echo"})


async def begin(deployment, **body) -> tuple[asyncio.Task, asyncio.Future]:
    """A request, and what it waits for."""
    task = asyncio.create_task(
        deployment.client.post(COMPLETIONS, json={**ASK, **body}, headers={"x-dynamo-explain": "1"})
    )
    return task, await asyncio.wait_for(deployment.frontend_runtime.request_plane.asked.get(), 20)


@pytest.mark.parametrize("place", [0, 1])
async def test_the_worker_that_claims_a_request_gets_it(deployment, place):
    task, answer = await begin(deployment)
    assert not task.done()
    answer.set_result(Claim(WorkerKey(InstanceId(workers(deployment)[place])), "test"))
    response = await task
    assert response.json()["choices"][0]["text"] == "hello"
    assert '"chosen_by":"test"' in response.headers["x-dynamo-routing"].replace(" ", "")
    assert [engine._step > 0 for engine in deployment.engines] == [place == 0, place == 1]


async def test_a_request_that_nobody_claims_goes_to_any_worker(deployment):
    task, answer = await begin(deployment)
    answer.set_result(None)
    response = await task
    assert response.status_code == 200
    assert '"chosen_by":"router"' in response.headers["x-dynamo-routing"].replace(" ", "")


async def test_a_client_that_leaves_meanwhile_costs_no_worker_anything(deployment):
    task, answer = await begin(deployment, stream=True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await deployment.until(lambda: in_work(deployment) == 0)
    answer.set_result(Claim(WorkerKey(InstanceId(workers(deployment)[0])), "test"))
    # Another one goes all the way after it.
    other, its_answer = await begin(deployment)
    its_answer.set_result(Claim(WorkerKey(InstanceId(workers(deployment)[1])), "test"))
    assert (await other).status_code == 200
    assert [engine._step > 0 for engine in deployment.engines] == [False, True]
    assert busy(deployment) == 0


async def test_workers_that_vanish_meanwhile_make_it_an_error_that_can_be_tried_again(deployment):
    task, answer = await begin(deployment)
    for runtime, _ in list(deployment._running[:2]):
        await deployment.stop(runtime)
    await deployment.until(lambda: not deployment.frontend.models.ready())
    answer.set_result(None)
    response = await task
    assert response.status_code == 503
    assert "retry-after" in response.headers
