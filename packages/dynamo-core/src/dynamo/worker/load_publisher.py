"""Publishes an engine's load when it has changed, a few times a second at most."""

from __future__ import annotations

import asyncio

import msgspec

from dynamo.protocols.engine import LoadSource
from dynamo.protocols.event_plane import EventPlane
from dynamo.protocols.load import LOAD_SUBJECT, WorkerLoad

__all__ = ["INTERVAL_SECONDS", "publish_load"]

INTERVAL_SECONDS = 0.25
#: An unchanged load is said again this often, for listeners that came later.
_REPEAT_INTERVALS = 20


async def publish_load(engine: LoadSource, plane: EventPlane, instance_id: int, model: str) -> None:
    """Run until cancelled."""
    encode = msgspec.msgpack.Encoder().encode
    last: WorkerLoad | None = None
    silent = 0
    while True:
        load = WorkerLoad(instance_id, model, list(engine.load()))
        silent += 1
        if load != last or silent >= _REPEAT_INTERVALS:
            plane.publish(LOAD_SUBJECT, encode(load))
            last, silent = load, 0
        await asyncio.sleep(INTERVAL_SECONDS)
