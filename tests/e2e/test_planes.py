"""Frontend and workers as processes, over every pair of discovery backend, request plane and event plane."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack

import httpx
import msgspec
import numpy as np
import pytest

from dynamo.config.loading import load_settings
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.kv_events import (
    KV_EVENTS_SUBJECT,
    KV_SNAPSHOT_ENDPOINT,
    HashesStored,
    KvEventBatch,
    KvSnapshotRequest,
)
from dynamo.runtime.client import encode_request, stream_items
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings
from tests.e2e.processes import Deployment, Frontend, Process, deployment, wait_until

pytestmark = pytest.mark.e2e

COMBINATIONS = list(itertools.product(("file", "etcd"), ("tcp", "nats"), ("zmq", "nats")))
SECONDS = 20.0


def words(number: int, count: int = 12) -> str:
    """A prompt of several blocks that nobody has cached."""
    return " ".join(f"prompt{number}word{index}" for index in range(count))


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def environment(request, tmp_path) -> dict[str, str]:
    """What the processes of one combination have in common."""
    discovery, request_plane, event_plane = request.param
    env = {
        "DYN_NAMESPACE": "-".join(request.param),
        "DYN_DISCOVERY_BACKEND": discovery,
        "DYN_STATE_DIR": str(tmp_path / "state"),
        "DYN_PLANE_SECRET": "test",
        "DYN_REQUEST_PLANE": request_plane,
        "DYN_REQUEST_PLANE_FALLBACK": "",
        "DYN_EVENT_PLANE": event_plane,
    }
    if "etcd" in request.param:
        env["ETCD_ENDPOINTS"] = request.getfixturevalue("etcd_server").endpoint
    if "nats" in request.param:
        env["NATS_SERVER"] = request.getfixturevalue("nats_server").url
    return env


@pytest.fixture
def system(environment, tmp_path) -> Iterator[tuple[Deployment, list[Process], Frontend]]:
    """Two echo workers and a frontend, started side by side."""
    with deployment(tmp_path, environment) as made:
        workers = [made.worker("--tokens-per-second", "1000") for _ in range(2)]
        frontend = made.frontend()
        made.until_serving(frontend, workers=2)
        yield made, workers, frontend


class Observer:
    """Another process of the deployment, as far as the others can tell: follows the KV events of all workers."""

    def __init__(self, runtime: DistributedRuntime) -> None:
        self._runtime = runtime
        self._decode = msgspec.msgpack.Decoder(KvEventBatch).decode
        self.batches: dict[int, dict[int, KvEventBatch]] = {}

    async def start(self) -> None:
        plane = self._runtime.event_plane
        assert plane is not None
        await plane.subscribe(KV_EVENTS_SUBJECT, self._take)

    def workers(self) -> list[InstanceRecord]:
        return self._runtime.instances.all()

    def latest(self, instance_id: int) -> int:
        return max(self.batches.get(instance_id, {}), default=-1)

    async def snapshot(self, worker: InstanceRecord) -> tuple[int, set[int]]:
        """The worker's content and the number that it is valid at."""
        source = InstanceRecord(
            worker.namespace, worker.component, KV_SNAPSHOT_ENDPOINT, worker.instance_id, worker.transports
        )
        content: set[int] = set()
        sequence = -1
        request = encode_request(KvSnapshotRequest())
        async for batch in stream_items(self._runtime.request_plane, source, request, Context("s"), KvEventBatch):
            apply(content, batch)
            sequence = batch.sequence
        return sequence, content

    def _take(self, payload: bytes) -> None:
        batch = self._decode(payload)
        self.batches.setdefault(batch.instance_id, {})[batch.sequence] = batch


def apply(content: set[int], batch: KvEventBatch) -> None:
    for event in batch.events:
        hashes = set(np.frombuffer(event.hashes, "<u8").tolist())
        if isinstance(event, HashesStored):
            content |= hashes
        else:
            content -= hashes


@pytest.fixture
async def observer(environment: Mapping[str, str], system) -> AsyncIterator[Observer]:
    settings = load_settings(RuntimeSettings, environ=environment)
    async with AsyncExitStack() as stack:
        made = Observer(await stack.enter_async_context(DistributedRuntime(settings)))
        await made.start()
        yield made


@pytest.fixture
async def client(system) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=system[2].url, timeout=SECONDS) as made:
        yield made


async def ask(client: httpx.AsyncClient, prompt: str) -> str:
    answer = await client.post("/v1/completions", json={"model": "echo", "prompt": prompt})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


async def until(condition, what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what, seconds=SECONDS)


async def test_everything_works_over_these_planes(system, client, observer):
    _, workers, frontend = system
    await answers_are_right(client)
    await a_client_that_leaves_frees_the_engine(client, workers)
    await events_agree_with_snapshots(client, observer)
    await asyncio.to_thread(workers[0].stop)
    await until(lambda: len(frontend.instances()) == 1, "the frontend notices a worker that stopped")
    for number in range(4):
        assert await ask(client, words(900 + number)) == words(900 + number)


async def answers_are_right(client: httpx.AsyncClient) -> None:
    prompts = [words(number) for number in range(8)]
    assert await asyncio.gather(*(ask(client, prompt) for prompt in prompts)) == prompts
    body = {"model": "echo", "prompt": prompts[0], "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        events = [line[6:] async for line in response.aiter_lines() if line]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == prompts[0]
    assert len(events) > 3


async def a_client_that_leaves_frees_the_engine(client: httpx.AsyncClient, workers: list[Process]) -> None:
    def running() -> float:
        return sum(worker.metric("dynamo_component_running_requests") for worker in workers)

    body = {"model": "echo", "prompt": words(0), "stream": True, "max_tokens": 3000, "ignore_eos": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.aiter_lines()
        await lines.__anext__()
        assert await asyncio.to_thread(running) == 1
    await until(lambda: running() == 0, "the engine stops")
    assert sum(worker.metric("dynamo_component_used_kv_blocks") for worker in workers) == 0


async def events_agree_with_snapshots(client: httpx.AsyncClient, observer: Observer) -> None:
    """A listener that starts with a snapshot and goes on with the events behind it knows what the next one says."""
    ids = [worker.instance_id for worker in observer.workers()]
    assert len(ids) == 2
    numbers = itertools.count(100)
    while not all(observer.latest(instance_id) >= 0 for instance_id in ids):  # subscriptions take a moment
        await ask(client, words(next(numbers)))
    before = {worker.instance_id: await observer.snapshot(worker) for worker in observer.workers()}
    for _ in range(6):
        await ask(client, words(next(numbers)))
    for worker in observer.workers():
        sequence, content = before[worker.instance_id]
        last, expected = await observer.snapshot(worker)
        assert last > sequence
        await until(lambda w=worker, n=last: observer.latest(w.instance_id) >= n, "all events")
        for number in range(sequence + 1, last + 1):
            apply(content, observer.batches[worker.instance_id][number])
        assert content == expected
        assert content


@pytest.fixture
def random_over_nats(nats_server, tmp_path) -> Iterator[tuple[list[Process], Frontend]]:
    """Three echo workers, and a frontend whose router takes any of them."""
    environment = {
        "DYN_NAMESPACE": "random-over-nats",
        "NATS_SERVER": nats_server.url,
        "DYN_REQUEST_PLANE": "nats",
        "DYN_ROUTER_MODE": "random",
    }
    with deployment(tmp_path, environment) as made:
        workers = [made.worker("--tokens-per-second", "1000", "--max-model-len", "100000") for _ in range(3)]
        frontend = made.frontend("--explain")
        made.until_serving(frontend, workers=3)
        yield workers, frontend


async def test_in_random_mode_nats_chooses_among_the_ready_workers(random_over_nats):
    workers, frontend = random_over_nats
    async with httpx.AsyncClient(base_url=frontend.url, timeout=SECONDS) as client:
        await the_group_chooses_all(client, frontend)
        await who_is_busy_is_not_used_although_it_claims(client)
        workers[0].kill()
        await until(lambda: len(frontend.instances()) == 2, "the frontend notices the kill")
        await the_group_chooses_all(client, frontend)
        assert await asyncio.to_thread(workers[1].stop) == 0
        await until(lambda: len(frontend.instances()) == 1, "the frontend notices the stop")
        # With one worker there is nothing to choose, and nobody is asked.
        assert await decide(client) == ("router", frontend.instances()[0])


async def decide(client: httpx.AsyncClient) -> tuple[str, str]:
    """Who chose the worker of one request, and which it was."""
    body, headers = {"model": "echo", "prompt": "hi"}, {"x-dynamo-explain": "1"}
    answer = await client.post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    decision = json.loads(answer.headers["x-dynamo-routing"])
    return decision["chosen_by"], decision["worker"]


async def the_group_chooses_all(client: httpx.AsyncClient, frontend: Frontend) -> None:
    wanted = set(frontend.instances())
    chosen: set[str] = set()
    for _ in range(200):
        by, worker = await decide(client)
        assert worker in wanted
        if by == "nats":
            chosen.add(worker)
        if chosen == wanted:
            return
    raise AssertionError(f"of {wanted} NATS chose {chosen}")


async def who_is_busy_is_not_used_although_it_claims(client: httpx.AsyncClient) -> None:
    long = {"prompt": words(0, 1000), "stream": True, "max_tokens": 80_000, "ignore_eos": True}
    limits = {"model": "echo", "active_decode_blocks_threshold": 0.05}
    explain = {"x-dynamo-explain": "1"}
    async with client.stream("POST", "/v1/completions", json={"model": "echo", **long}, headers=explain) as response:
        lines = response.aiter_lines()
        await lines.__anext__()
        busy = json.loads(response.headers["x-dynamo-routing"])["worker"]
        assert (await client.post("/busy_threshold", json=limits)).status_code == 200
        await until_left_alone(client, busy)
        choices = [await decide(client) for _ in range(40)]
        # A third of the claims is its own: these are set aside, and the router chooses.
        assert busy not in {worker for _, worker in choices}
        assert {by for by, _ in choices} == {"nats", "router"}
    limits["active_decode_blocks_threshold"] = 1.0
    assert (await client.post("/busy_threshold", json=limits)).status_code == 200


async def until_left_alone(client: httpx.AsyncClient, worker: str) -> None:
    """Wait until the frontend has heard of its load."""
    for _ in range(100):
        await decide(client)
        last = (await client.get("/debug/routing")).json()["decisions"][0]
        if worker not in {candidate["worker"] for candidate in last["candidates"]}:
            return
    raise AssertionError(f"{worker} is not found to be busy")
