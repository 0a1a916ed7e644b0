"""Frontends of one deployment find each other and count each other's requests; those that need not stay apart."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest

from dynamo.frontend.app import Frontend
from dynamo.frontend.replicas import REPLICA_ENDPOINT
from dynamo.frontend.settings import FrontendSettings
from dynamo.router.replica_sync import REPLICA_SUBJECT
from dynamo.router.settings import RouterSettings
from dynamo.runtime.distributed import DistributedRuntime

SLOW = {"backend": "echo", "argv": ["--tokens-per-second", "5"]}
REQUEST = {"model": "echo", "prompt": "one two three four five six", "max_tokens": 100, "stream": True}


class Pair:
    """The deployment's frontend and a second one."""

    def __init__(self, deployment, router):
        self.deployment = deployment
        self.runtime = DistributedRuntime(deployment.settings)
        self.router = RouterSettings(**router)

    async def start(self):
        await self.runtime.start()
        settings = FrontendSettings(http_host="127.0.0.1", http_port=0, drain_grace_seconds=0)
        self.frontend = Frontend(settings, self.router, self.runtime)
        self.task = asyncio.create_task(self.frontend.run())
        await self.deployment.until(
            lambda: self.frontend.server.port and self.frontend.models.names().get("echo") is not None
        )
        return self

    async def stop(self):
        self.runtime.stopping.set()
        await self.task
        await self.runtime.close()

    def announced(self):
        return [record for record in self.runtime.instances.all() if record.endpoint == REPLICA_ENDPOINT]


@pytest.fixture
async def make_pair(make_deployment):
    pairs = []

    async def make(**router):
        deployment = await make_deployment(SLOW, router=router)
        await deployment.serves("echo")
        pairs.append(await Pair(deployment, router).start())
        return pairs[-1]

    yield make
    for pair in pairs:
        await pair.stop()


async def test_a_request_counts_at_the_other_frontend_until_it_ends(make_pair):
    pair = await make_pair(router_mode="kv")
    first, second = pair.deployment.frontend, pair.frontend
    await pair.deployment.until(lambda: first._replicas.sync.replicas() == 1 == second._replicas.sync.replicas())
    async with pair.deployment.client.stream("POST", "/v1/completions", json=REQUEST):
        await pair.deployment.until(lambda: second._replicas.sync.remote_requests() == 1)
        (candidate,) = second.models.get("echo").candidates._ordered
        assert (candidate.active_requests, len(candidate.kv.active)) == (1, 1)
    await pair.deployment.until(lambda: second._replicas.sync.remote_requests() == 0)
    assert (candidate.active_requests, len(candidate.kv.active)) == (0, 0)
    health = (await pair.deployment.client.get("/health")).json()
    assert [instance["endpoint"].rpartition(".")[2] for instance in health["instances"]] == ["generate"]


async def test_garbage_is_counted_and_harmless(make_pair):
    pair = await make_pair(router_mode="kv")
    receiver = pair.deployment.frontend
    await pair.deployment.until(lambda: receiver._replicas.sync.replicas() == 1)
    plane = pair.runtime.event_plane
    for garbage in (b"", b"\xc1", msgspec.msgpack.encode({"router": -1, "sequence": 0}), b"\x00" * 1000):
        plane.publish(REPLICA_SUBJECT, garbage)
    foreign = {"router": 77, "sequence": 0, "booked": [[1, 5, 0, 100, 1]], "computed": [4], "freed": [9]}
    plane.publish(REPLICA_SUBJECT, msgspec.msgpack.encode(foreign))
    await pair.deployment.until(lambda: receiver._replicas.sync.replicas() == 2)
    assert receiver._replicas.sync.remote_requests() == 0
    text = (await pair.deployment.client.get("/metrics")).text
    assert 'dynamo_router_replica_messages_total{outcome="malformed"} 4.0' in text
    assert 'dynamo_router_replica_messages_total{outcome="unknown_worker"} 1.0' in text


@pytest.mark.parametrize(
    "router", [{"router_mode": "round-robin"}, {"router_mode": "kv", "router_replica_sync": False}]
)
async def test_where_it_makes_no_difference_nothing_is_announced(make_pair, router):
    pair = await make_pair(**router)
    assert (pair.frontend._replicas, pair.announced()) == (None, [])
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{pair.frontend.server.port}") as client:
        assert "dynamo_router_replicas" not in (await client.get("/metrics")).text
