"""Two ends of a request plane in one process, over every carrier there is."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from dynamo.errors import DynamoError
from dynamo.protocols.broker import BrokerOptions
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane import create_request_plane

TIMEOUT = 10.0


class Gathering:
    """A sink that remembers, with an event at its end."""

    def __init__(self):
        self.items: list[bytes] = []
        self.batches = 0
        self.error: DynamoError | None = None
        self.ended = asyncio.Event()
        self.arrived = asyncio.Event()

    def on_items(self, items):
        self.items += items
        self.batches += 1
        self.arrived.set()

    def on_end(self):
        self.ended.set()

    def on_error(self, error):
        self.error = error
        self.ended.set()

    async def wait(self):
        await asyncio.wait_for(self.ended.wait(), TIMEOUT)

    async def begin(self):
        await asyncio.wait_for(self.arrived.wait(), TIMEOUT)


class Pair:
    """A serving and an asking plane of one process."""

    def __init__(self, plane: str, options: PlaneOptions, asking: PlaneOptions | None = None, fallback: str = ""):
        self.serving = create_request_plane(plane, options, fallback)
        self.asking = create_request_plane(plane, asking or options, fallback)

    async def start(self):
        self.server = await self.serving.serve(7)
        self.record = InstanceRecord("ns", "worker", "generate", 7, dict(self.server.transports))
        return self

    def serve(self, handler):
        self.server.add_handler("worker.generate", handler)

    def send(self, payload=b"x", context=None):
        sink = Gathering()
        stream = self.asking.send(self.record, payload, sink, context or Context("r"))
        return sink, stream

    async def close(self):
        await self.asking.close()
        await self.serving.close()


@pytest.fixture
def pair_class():
    """For tests that put a pair together themselves."""
    return Pair


@pytest.fixture(params=["tcp", "nats"])
def carrier(request):
    """The name of a request plane."""
    return request.param


@pytest.fixture
async def make_pair(carrier, request):
    """Makes a started pair over the carrier: ``make_pair(secret=..., asking={...})``."""
    pairs = []
    url = request.getfixturevalue("nats_server").url if carrier == "nats" else ""
    shared = {"namespace": uuid.uuid4().hex, "broker": BrokerOptions(servers=(url,) if url else ())}

    async def make(*, asking=None, **options):
        both = {**shared, **options}
        pair = Pair(carrier, PlaneOptions(**both), PlaneOptions(**{**both, **(asking or {})}))
        pairs.append(pair)
        return await pair.start()

    yield make
    for pair in pairs:
        await pair.close()


@pytest.fixture
async def pair(make_pair):
    """A pair with a secret."""
    return await make_pair(secret=b"s3cret")
