"""Workers of the select service that come, go and change at the same time; who may say so."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import zmq.asyncio

from dynamo.errors import InvalidRequest, Overloaded
from dynamo.frontend.select.app import SelectService
from dynamo.frontend.select.settings import SelectSettings
from dynamo.frontend.select.workers import KvEventsRegistration, WorkerPool, WorkerRegistration
from dynamo.plugins import plugins
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings

ROUTER = RouterSettings(router_mode="kv")


@pytest.fixture
async def pool():
    context = zmq.asyncio.Context()
    made = WorkerPool(
        lambda model: CandidateTable(policy_for_mode("kv", plugins(), ROUTER), ROUTER, model=model),
        context,
        max_workers=2,
    )
    yield made
    await made.close()
    context.term()


def registration(name="one", model="m", port=5557):
    return WorkerRegistration(name, model, kv_events=KvEventsRegistration(f"tcp://127.0.0.1:{port}"))


async def test_of_registrations_at_the_same_time_one_stays(pool):
    await pool.put(registration())
    await asyncio.gather(*(pool.put(registration(port=6000 + n)) for n in range(5)))
    (worker,) = pool.all()
    _, table = pool.table("m")
    assert [candidate.key.instance_id for candidate in table.candidates()] == [worker.instance_id]
    assert pool.of(table.candidates()[0].key) is worker


async def test_a_request_without_a_model_means_the_only_one(pool):
    with pytest.raises(InvalidRequest, match="'model' is missing, and 0 models have workers"):
        pool.table(None)
    await pool.put(registration())
    assert pool.table(None)[0] == "m"
    await pool.put(registration("two", "n", port=5558))
    with pytest.raises(InvalidRequest, match="2 models have workers: m, n"):
        pool.table(None)


async def test_models_are_bounded_as_workers_are(pool):
    for model in ("a", "b"):
        await pool.put(registration(model=model))
        await pool.remove("one")
    with pytest.raises(Overloaded):
        await pool.put(registration(model="c"))
    assert (await pool.put(registration(model="a"))).registration.model == "a"


async def test_where_keys_are_told_apart_only_an_admin_registers(tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: team, key: sk-of-team}, {name: gateway, key: sk-of-gateway, admin: true}]")
    runtime = DistributedRuntime(RuntimeSettings(discovery_backend="mem", event_plane="", state_dir=str(tmp_path)))
    await runtime.start()
    settings = SelectSettings(http_host="127.0.0.1", http_port=0, api_key_file=str(keys))
    service = SelectService(settings, ROUTER, runtime)
    running = asyncio.create_task(service.run())
    while not service.server.port:
        await asyncio.sleep(0.005)
    body = {"worker_id": "one", "model": "m"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.server.port}") as client:
        team, gateway = ({"authorization": f"Bearer sk-of-{name}"} for name in ("team", "gateway"))
        assert (await client.post("/workers", json=body, headers=team)).status_code == 403
        assert (await client.post("/workers", json=body, headers=gateway)).status_code == 200
        assert (await client.post("/select", json={"token_ids": [1] * 16}, headers=team)).status_code == 200
        assert (await client.delete("/workers/one", headers=team)).status_code == 403
        assert (await client.delete("/workers/one", headers=gateway)).status_code == 200
    runtime.stopping.set()
    await asyncio.wait_for(running, 20)
    await runtime.close()
