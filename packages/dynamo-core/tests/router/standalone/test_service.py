"""What a standalone router listens to, in the modes that look at caches and in those that do not."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from dynamo.protocols.kv_events import KV_EVENTS_SUBJECT
from dynamo.protocols.load import LOAD_SUBJECT
from dynamo.router.settings import RouterSettings
from dynamo.router.standalone.service import RouterService
from dynamo.router.standalone.settings import RouterServiceSettings
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.settings import RuntimeSettings


class RememberingPlane:
    """An event plane that carries nothing."""

    def __init__(self):
        self.subjects = []

    async def subscribe(self, subject, receive):
        self.subjects.append(subject)

    async def close(self):
        pass


@pytest.mark.parametrize(
    ("router", "caches"),
    [
        ({"router_mode": "kv"}, True),
        ({"router_mode": "round-robin"}, False),
        # As in a frontend: the queue counts the tokens that are cached nowhere.
        ({"router_mode": "round-robin", "router_queue_threshold": 1.0}, True),
        ({"router_mode": "kv", "router_use_kv_events": False}, False),
    ],
)
async def test_kv_events_are_followed_where_they_matter(tmp_path, router, caches):
    settings = RuntimeSettings(
        discovery_backend=f"memory://{uuid.uuid4().hex}", state_dir=str(tmp_path), event_plane="", plane_secret="s"
    )
    async with DistributedRuntime(settings) as runtime:
        runtime.event_plane = plane = RememberingPlane()
        service = RouterService(
            RouterServiceSettings(endpoint="ns.backend.generate"), RouterSettings(**router), runtime
        )
        runtime.stopping.set()
        await asyncio.wait_for(service.run(), 10)
    assert plane.subjects == [LOAD_SUBJECT, *([KV_EVENTS_SUBJECT] if caches else [])]
