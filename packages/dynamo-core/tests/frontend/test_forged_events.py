"""Somebody on the event plane tells lies about caches: counted, and the answers stay right and find their prefixes."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.hashing import sequence_hashes
from dynamo.protocols.kv_events import KV_EVENTS_SUBJECT, AllBlocksCleared, HashesRemoved, HashesStored, KvEventBatch
from dynamo.protocols.load import LOAD_SUBJECT, EngineLoad, WorkerLoad
from dynamo.runtime.distributed import DistributedRuntime

PROMPT = "a long story that is told again " * 12
encode = msgspec.msgpack.encode


@pytest.fixture
async def deployment(make_deployment):
    made = await make_deployment(*[{"backend": "echo"}] * 2, router={"router_mode": "kv", "explain": True})
    await made.serves("echo", workers=2)
    return made


@pytest.fixture
async def liar(deployment):
    """Publishes in the name of workers: a process that knows the deployment's secret, and is wrong."""
    runtime = deployment._running[0][0]
    return lambda subject, message: runtime.event_plane.publish(subject, message)


def counts(text):
    prefix = 'dynamo_router_kv_events_total{model="echo",outcome="'
    lines = [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]
    return {line.split('"')[0]: float(line.split(" ")[1]) for line in lines}


async def ask(deployment, prompt=PROMPT):
    body = {"model": "echo", "prompt": prompt, "max_tokens": 4}
    answer = await deployment.client.post("/v1/completions", json=body, headers={"x-dynamo-explain": "1"})
    assert answer.status_code == 200, answer.text
    return answer.json(), json.loads(answer.headers["x-dynamo-routing"])


def batch(instance_id, sequence, events, epoch=1, block_size=16):
    return encode(KvEventBatch(instance_id, 0, epoch, sequence, block_size, events, "echo"))


async def test_lies_about_caches_are_counted_and_harmless(deployment, liar):
    _, first = await ask(deployment)
    kv = deployment.frontend.models.get("echo").candidates._kv
    await deployment.until(lambda: kv.indexer.blocks() > 0 and deployment.frontend.models.state() is None)
    worker = int(first["worker"], 16)
    source = next(source for key, source in kv.indexer._sources.items() if key.instance_id == worker)
    order, blocks = source.order, kv.indexer.blocks()
    tokens = np.arange(160, dtype=np.uint32)
    hashes = sequence_hashes(tokens, 16).astype("<u8").tobytes()
    lies = [
        b"\xc1 no message",
        batch(12345, 0, [AllBlocksCleared()]),
        batch(worker, order.sequence, [AllBlocksCleared()], order.epoch),
        batch(worker, 0, [AllBlocksCleared()], 1),
        batch(worker, order.sequence + 1, [HashesStored(hashes)], order.epoch, block_size=32),
        batch(worker, order.sequence + 50, [HashesRemoved(hashes)], order.epoch),
    ]
    for lie in lies:
        liar(KV_EVENTS_SUBJECT, lie)

    async def noticed():
        found = counts((await deployment.client.get("/metrics")).text)
        return {"unknown_worker", "duplicate", "stale_epoch", "wrong_block_size", "gap"} <= set(found)

    while not await noticed():
        pass
    await deployment.until(lambda: not kv.indexer.asking())
    assert kv.indexer.blocks() == blocks
    answer, again = await ask(deployment)
    assert again["worker"] == first["worker"]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_a_forged_removal_costs_a_hit_and_the_worker_puts_it_right(deployment, liar):
    _, first = await ask(deployment)
    kv = deployment.frontend.models.get("echo").candidates._kv
    await deployment.until(lambda: kv.indexer.blocks() > 0)
    worker = int(first["worker"], 16)
    source = next(source for key, source in kv.indexer._sources.items() if key.instance_id == worker)
    held = kv.indexer.blocks()
    liar(KV_EVENTS_SUBJECT, batch(worker, source.order.sequence + 1, [AllBlocksCleared()], source.order.epoch))
    await deployment.until(lambda: kv.indexer.blocks() < held)
    answer, _ = await ask(deployment)
    assert answer["choices"][0]["text"]
    # The worker's own next numbers do not fit the forged one: it is asked, and says all.
    for number in range(3):
        await ask(deployment, f"{number} {PROMPT}")
    await deployment.until(lambda: not kv.indexer.asking() and kv.indexer.blocks() > 0)


def impossible(instance_id):
    load = EngineLoad(active_prefill_tokens=2**60, active_decode_blocks=2**60)
    return encode(WorkerLoad(instance_id, "echo", [load]))


async def test_impossible_loads_keep_nobody_from_being_served(deployment, liar):
    one, other = (instance.instance_id for instance in deployment.frontend_runtime.instances.all() if instance.card)
    table = deployment.frontend.models.get("echo").candidates

    def believed():
        return {c.key.instance_id for c in table.candidates() if c.kv.active.decode_blocks > 2**59}

    liar(LOAD_SUBJECT, b"\xc1")
    liar(LOAD_SUBJECT, impossible(one))
    await deployment.until(lambda: believed() == {one})
    for number in range(4):  # nobody goes there, whatever the prompt
        _, decision = await ask(deployment, f"{number} {PROMPT}")
        assert int(decision["worker"], 16) == other
    liar(LOAD_SUBJECT, impossible(other))
    liar(LOAD_SUBJECT, impossible(one))
    await deployment.until(lambda: believed() == {one, other})
    # Two that are equally loaded: the one that holds the prompt.
    answer, decision = await ask(deployment, f"3 {PROMPT}")
    assert int(decision["worker"], 16) == other
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(("secret", "heard"), [("s", True), ("another", False)])
async def test_who_does_not_know_the_secret_is_not_heard(deployment, secret, heard):
    settings = deployment.settings.model_copy(update={"plane_secret": secret})
    async with DistributedRuntime(settings) as stranger:
        await stranger.announce_publisher(EndpointAddress(settings.namespace, "stranger", "lies"))
        for _ in range(60):
            stranger.event_plane.publish(KV_EVENTS_SUBJECT, batch(12345, 0, [AllBlocksCleared()]))
            await ask(deployment, "hello")
            found = counts((await deployment.client.get("/metrics")).text)
            if "unknown_worker" in found:
                break
    assert ("unknown_worker" in found) == heard
