"""Claims on ``/metrics``: both sides of one process, with and without a fallback plane, and without a broker."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.claims import ClaimingPlane
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.server import iterator_handler
from dynamo.runtime.settings import RuntimeSettings

TIMEOUT = 20.0


async def echo(request, context):
    yield request


def settings(**values):
    return RuntimeSettings(discovery_backend="memory", event_plane="", namespace=uuid.uuid4().hex, **values)


def claims(runtime, side, outcome):
    labels = {"side": side, "outcome": outcome}
    return runtime.metrics.get_sample_value("dynamo_request_plane_claims_total", labels)


@pytest.mark.parametrize("fallback", ["tcp", ""])
async def test_claims_are_counted_on_both_sides(nats_server, fallback):
    chosen = settings(request_plane="nats", nats_servers=[nats_server.url], request_plane_fallback=fallback)
    async with DistributedRuntime(chosen) as runtime:
        plane = runtime.request_plane
        assert isinstance(plane, ClaimingPlane)
        assert claims(runtime, "asking", "claimed") == 0
        assert claims(runtime, "serving", "claimed") is None
        rooms = [True]
        address = EndpointAddress(chosen.namespace, "worker", "generate")
        card = ModelDeploymentCard("m")
        handler = iterator_handler(echo)
        await runtime.serve_endpoint(address, handler, card=card, has_room=lambda: rooms[0])
        (record,) = runtime._records
        for _ in range(2):
            await asyncio.wait_for(plane.claim([record]), TIMEOUT)
        rooms[0] = False
        await asyncio.wait_for(plane.claim([record]), TIMEOUT)
        for side in ("asking", "serving"):
            assert (claims(runtime, side, "claimed"), claims(runtime, side, "declined")) == (2, 1)


async def test_a_plane_without_a_broker_has_no_claims():
    async with DistributedRuntime(settings(request_plane="tcp")) as runtime:
        assert "claims" not in {family.name for family in runtime.metrics.collect()}
        assert claims(runtime, "asking", "claimed") is None
