"""Connects the router's replica sync to the event plane and to discovery.

Every frontend whose router mode looks at load announces itself under an endpoint that serves nothing, so that the
others know that somebody listens, where its event plane is, and when it has died. `dynamo.frontend.app` owns one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Literal

import msgspec
from prometheus_client import Counter, Gauge

from dynamo.errors import DynamoError
from dynamo.frontend.models import ServedModels
from dynamo.protocols.addressing import EndpointAddress, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.event_plane import EventPlane
from dynamo.router.replica_sync import BEAT_SECONDS, REPLICA_SUBJECT, RemoteBooking, ReplicaMessage, ReplicaSync
from dynamo.runtime.distributed import DistributedRuntime

__all__ = ["REPLICA_ENDPOINT", "Replicas"]

logger = logging.getLogger(__name__)

REPLICA_ENDPOINT = "router_replica"
_COMPONENT = "frontend"
#: What happens within it is told in one message: a hundredth of what a worker's own report is late.
_GATHER_SECONDS = 0.005

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ReplicaMessage).decode


class Replicas:
    """This frontend among the others."""

    def __init__(self, runtime: DistributedRuntime, plane: EventPlane, models: ServedModels) -> None:
        self._runtime = runtime
        self._plane = plane
        self._models = models
        outcomes = Counter(
            "dynamo_router_replica_messages",
            "Messages of other frontends about their requests, by what became of them.",
            ["outcome"],
            registry=runtime.metrics,
        )
        self.sync = ReplicaSync(
            runtime.instance_id,
            self._book,
            changed=self._say_soon,
            count=lambda outcome: outcomes.labels(outcome).inc(),
        )
        self._count_malformed = outcomes.labels("malformed").inc
        for name, text, value in (
            ("dynamo_router_replicas", "Other frontends that are heard.", self.sync.replicas),
            ("dynamo_router_replica_requests", "Open requests of other frontends.", self.sync.remote_requests),
        ):
            Gauge(name, text, registry=runtime.metrics).set_function(value)

    async def run(self) -> None:
        """Announce this frontend, follow the others, and say something once a second, until cancelled."""
        runtime = self._runtime
        await self._plane.subscribe(REPLICA_SUBJECT, self._take)
        runtime.instances.listen(self._on_instance)
        announced = False
        while True:
            if not announced:
                announced = await self._announce()
            self._say(self.sync.beat(time.monotonic()))
            await asyncio.sleep(BEAT_SECONDS)

    async def _announce(self) -> bool:
        try:
            await self._runtime.announce_publisher(
                EndpointAddress(self._runtime.settings.namespace, _COMPONENT, REPLICA_ENDPOINT)
            )
        except DynamoError as error:
            logger.warning("other frontends cannot be told of this one yet: %s", error.message)
            return False
        return True

    def _on_instance(self, kind: Literal["put", "delete"], record: InstanceRecord) -> None:
        if record.endpoint != REPLICA_ENDPOINT:
            return
        if kind == "put":
            self.sync.add_peer(record.instance_id)
        else:
            self.sync.drop_peer(record.instance_id)
            self._poke()

    def _book(self, worker: WorkerKey, prefill_tokens: int, blocks: int, now: float) -> RemoteBooking | None:
        for table in self._models.tables().values():
            booking = table.book_remote(worker, prefill_tokens, blocks, now)
            if booking is not None:
                return booking
        return None

    def _take(self, payload: bytes) -> None:
        try:
            message = _decode(payload)
        except msgspec.MsgspecError as error:
            self._count_malformed()
            logger.debug("a message of another frontend is not readable: %s", error)
            return
        self.sync.take(message, time.monotonic())
        if message.snapshot or message.computed or message.freed:
            self._poke()

    def _poke(self) -> None:
        for table in self._models.tables().values():
            table.poke()

    def _say_soon(self) -> None:
        asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._say_news)

    def _say_news(self) -> None:
        self._say(self.sync.news())

    def _say(self, message: ReplicaMessage | None) -> None:
        if message is not None:
            self._plane.publish(REPLICA_SUBJECT, _encode(message))
