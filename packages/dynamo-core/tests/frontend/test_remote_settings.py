"""Router settings from a real etcd: a threshold takes effect without a restart, and survives an outage."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from dynamo.frontend.remote_settings import follow_router_settings
from dynamo.router.settings import RouterSettings
from dynamo.runtime.etcd.connection import EtcdConnection
from dynamo.runtime.etcd.settings import EtcdSettings
from dynamo.runtime.etcd.target import EtcdTarget
from dynamo.runtime.settings import RuntimeSettings


async def test_a_threshold_changes_while_frontends_run(etcd, make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--num-blocks", "8", "--tokens-per-second", "20"]})
    await deployment.serves("echo")
    namespace = uuid.uuid4().hex
    runtime = RuntimeSettings(discovery_backend="etcd", etcd_endpoints=etcd.endpoint, namespace=namespace)
    frontend, changes = deployment.frontend, []

    def apply(settings):
        frontend._reconfigure(settings)
        changes.append(settings)

    remote = follow_router_settings(runtime, frontend._router, apply, measures=False)
    connection = EtcdConnection(EtcdTarget.parse(runtime.discovery_url(), EtcdSettings()))
    key = f"/dynamo/config/{namespace}/router".encode()
    try:
        await connection.put(
            key, json.dumps({"active_decode_blocks_threshold": 0.05, "router_mode": "random"}).encode()
        )
        await deployment.until(lambda: changes)
        assert changes[-1].active_decode_blocks_threshold == 0.05
        assert changes[-1].router_mode == frontend._router.router_mode == "round-robin"
        table = frontend.models.get("echo").candidates
        assert table.thresholds.active_decode_blocks_threshold == 0.05
        await connection.put(key, b'{"active_decode_blocks_threshold": "lots"}')
        await connection.put(key, b'{"active_decode_blocks_threshold": 0.5}')
        await deployment.until(lambda: changes[-1].active_decode_blocks_threshold == 0.5)
        etcd.kill()
        body = {"model": "echo", "prompt": "hi", "max_tokens": 1}
        assert (await deployment.client.post("/v1/completions", json=body)).status_code == 200
        assert table._settings.active_decode_blocks_threshold == 0.5
    finally:
        await connection.close()
        await remote.close()


def test_without_etcd_there_is_nothing_to_follow():
    runtime = RuntimeSettings(discovery_backend="memory")
    assert follow_router_settings(runtime, RouterSettings(), print, measures=True) is None


@pytest.mark.parametrize("measures", [False, True])
async def test_a_queue_is_switched_on_only_where_it_can_work(etcd, caplog, measures):
    """Without what workers have to compute it would let everything through, and say nothing."""
    namespace, changes, changed = uuid.uuid4().hex, [], asyncio.Event()
    runtime = RuntimeSettings(discovery_backend="etcd", etcd_endpoints=etcd.endpoint, namespace=namespace)

    def apply(settings):
        changes.append(settings)
        changed.set()

    remote = follow_router_settings(runtime, RouterSettings(), apply, measures=measures)
    connection = EtcdConnection(EtcdTarget.parse(runtime.discovery_url(), EtcdSettings()))
    try:
        await connection.put(
            f"/dynamo/config/{namespace}/router".encode(), b'{"router_queue_threshold": 2, "router_temperature": 0.5}'
        )
        await asyncio.wait_for(changed.wait(), 10)
    finally:
        await connection.close()
        await remote.close()
    assert changes[-1].router_temperature == 0.5
    assert changes[-1].router_queue_threshold == (2 if measures else None)
    assert ("router_queue_threshold cannot change while a frontend runs" in caplog.text) is not measures
