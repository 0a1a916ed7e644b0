"""Frontends tell each other what they have sent to which worker, so that all of them decide by all of the load.

Each numbers its messages. What a message of a frontend brings (booked, prompt computed, freed) is applied as it comes;
after a hole, and when a frontend is met, it is asked for all that it has open, which replaces what was known of it. A
frontend that says nothing for a few seconds, or that discovery drops, takes its bookings with it. So every loss is
made good, by a snapshot or by silence, and nothing needs an answer from anybody in particular.

No double counting: bookings of others are bookings (`ActiveSequences`), and workers' reports count for what is beyond
all bookings. No event loop, no clock: `dynamo.frontend.replicas` moves the bytes and calls :meth:`ReplicaSync.beat`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Protocol

import msgspec

from dynamo.protocols.addressing import InstanceId, WorkerKey

__all__ = ["BEAT_SECONDS", "REPLICA_SUBJECT", "SILENCE_SECONDS", "RemoteBooking", "ReplicaMessage", "ReplicaSync"]

logger = logging.getLogger(__name__)

#: Subject of the event plane that carries `ReplicaMessage`.
REPLICA_SUBJECT = "router_replicas"
#: Each frontend says something so often.
BEAT_SECONDS = 1.0
#: One that says nothing for so long has died; three lost beats are one incident.
SILENCE_SECONDS = 3.5
#: Open requests of one other frontend, and other frontends. Beyond it they are not counted: a bound on memory.
_MOST_OPEN = 100_000
_MOST_REPLICAS = 256

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class OpenRequest(msgspec.Struct, array_like=True, frozen=True):
    """A request at a worker."""

    number: _Number
    """Its frontend's name for it; never used again."""
    instance_id: _Number
    dp_rank: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    prefill_tokens: _Count
    """Prompt tokens that are to be computed still."""
    blocks: _Count
    """KV blocks that no other request of the worker held when this one was sent."""


class ReplicaMessage(msgspec.Struct, omit_defaults=True):
    """What one frontend says to the others. Within it, `booked` comes before `computed` and `freed`."""

    router: _Number
    """Instance id of the frontend's process."""
    sequence: _Number
    booked: list[OpenRequest] = []
    computed: list[_Number] = []
    freed: list[_Number] = []
    snapshot: bool = False
    """`booked` is all that is open; nothing else is."""
    wanted: list[_Number] = []
    """Frontends whose snapshot the sender needs."""


class RemoteBooking(Protocol):
    """Another frontend's request, as this one counts it; methods may be called more than once."""

    def prefill_done(self) -> None:
        """Its prompt is computed."""
        ...

    def end(self) -> None:
        """It is over."""
        ...


class _Replica:
    """What is known of one other frontend."""

    __slots__ = ("behind", "bookings", "heard_at", "sequence")

    def __init__(self, now: float) -> None:
        self.sequence = -1
        self.behind = True
        """Something of it was missed: its snapshot is wanted."""
        self.bookings: dict[int, RemoteBooking] = {}
        self.heard_at = now

    def end(self) -> None:
        for booking in self.bookings.values():
            booking.end()
        self.bookings.clear()


class ReplicaSync:
    """One frontend's side, over all its models. `now` is any monotonic clock, in seconds."""

    def __init__(
        self,
        router: int,
        book: Callable[[WorkerKey, int, int, float], RemoteBooking | None],
        *,
        changed: Callable[[], None] = lambda: None,
        count: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        """`book` counts a request of another frontend: worker, prompt tokens, blocks, now; None: not a worker of ours.

        `changed` is called when there is something to say and nothing was before. `count` is told outcomes of messages.
        """
        self._router = router
        self._book = book
        self._changed = changed
        self._count = count
        self._sequence = 0
        self._next_number = 1
        self._open: dict[int, OpenRequest] = {}
        self._booked: dict[int, OpenRequest] = {}
        self._computed: list[int] = []
        self._freed: list[int] = []
        self._snapshot_wanted = False
        self._peers: set[int] = set()
        self._replicas: dict[int, _Replica] = {}

    def open_requests(self) -> int:
        """Requests of this frontend."""
        return len(self._open)

    def remote_requests(self) -> int:
        """Requests of the others."""
        return sum(len(replica.bookings) for replica in self._replicas.values())

    def replicas(self) -> int:
        """Other frontends that are heard."""
        return len(self._replicas)

    # This frontend's requests

    def book(self, worker: WorkerKey, prefill_tokens: int, blocks: int) -> int:
        """A request was sent to `worker`; its number, for the two below."""
        number = self._next_number
        self._next_number += 1
        self._open[number] = OpenRequest(number, worker.instance_id, worker.dp_rank, prefill_tokens, blocks)
        if self._peers:
            self._say_soon()
            self._booked[number] = self._open[number]
        return number

    def computed(self, number: int) -> None:
        """Its prompt is computed."""
        request = self._open.get(number)
        if request is None or not request.prefill_tokens:
            return
        self._open[number] = msgspec.structs.replace(request, prefill_tokens=0)
        if self._peers:
            self._say_soon()
            self._computed.append(number)

    def free(self, number: int) -> None:
        """It is over."""
        if self._open.pop(number, None) is None or not self._peers:
            return
        self._say_soon()
        if self._booked.pop(number, None) is None:
            self._freed.append(number)

    def news(self) -> ReplicaMessage | None:
        """What is to be said now; None when there is nothing new."""
        return self._message() if self._something_to_say() else None

    def beat(self, now: float) -> ReplicaMessage | None:
        """To be called once per `BEAT_SECONDS`: what to say then; None while nobody listens."""
        for router, replica in list(self._replicas.items()):
            if now - replica.heard_at > SILENCE_SECONDS:
                logger.info("frontend %014x is silent: its requests do not count any more", router)
                self.drop(router)
        if not self._peers:
            return None
        message = self._message()
        # Only here: who is behind asks once a second, however much it has to say.
        message.wanted = [router for router, replica in self._replicas.items() if replica.behind]
        message.wanted += [router for router in self._peers if router not in self._replicas]
        return message

    # The others

    def add_peer(self, router: int) -> None:
        """Discovery knows another frontend: from now on there is somebody to talk to."""
        if router != self._router:
            self._peers.add(router)

    def drop_peer(self, router: int) -> None:
        """Discovery does not know it any more."""
        self._peers.discard(router)
        self.drop(router)
        if not self._peers:
            self._clear()

    def drop(self, router: int) -> None:
        """Forget what another frontend has said."""
        replica = self._replicas.pop(router, None)
        if replica is not None:
            replica.end()

    def take(self, message: ReplicaMessage, now: float) -> None:
        """What another frontend says; its own message comes back to a frontend on some planes, and is ignored."""
        if message.router == self._router:
            return
        self._snapshot_wanted = self._snapshot_wanted or self._router in message.wanted
        replica = self._replicas.get(message.router)
        if replica is None:
            if len(self._replicas) >= _MOST_REPLICAS:
                self._count("overflow")
                return
            replica = self._replicas[message.router] = _Replica(now)
        if message.sequence <= replica.sequence:
            self._count("duplicate")
            return
        replica.heard_at = now
        if message.snapshot:
            self._count("snapshot")
            replica.behind = False
            self._replace(replica, message.booked, now)
        else:
            lost = message.sequence != replica.sequence + 1 and replica.sequence >= 0
            self._count("gap" if lost else "applied")
            replica.behind = replica.behind or lost
            self._add(replica, message.booked, now)
        replica.sequence = message.sequence
        for number in message.computed:
            if number in replica.bookings:
                replica.bookings[number].prefill_done()
        for number in message.freed:
            booking = replica.bookings.pop(number, None)
            if booking is not None:
                booking.end()

    def _replace(self, replica: _Replica, requests: list[OpenRequest], now: float) -> None:
        listed = {request.number: request for request in requests}
        for number in [number for number in replica.bookings if number not in listed]:
            replica.bookings.pop(number).end()
        for number, booking in replica.bookings.items():
            if not listed[number].prefill_tokens:
                booking.prefill_done()
        self._add(replica, requests, now)

    def _add(self, replica: _Replica, requests: list[OpenRequest], now: float) -> None:
        for request in requests:
            if request.number in replica.bookings:
                continue
            if len(replica.bookings) >= _MOST_OPEN:
                self._count("overflow")
                return
            worker = WorkerKey(InstanceId(request.instance_id), request.dp_rank)
            booking = self._book(worker, request.prefill_tokens, request.blocks, now)
            if booking is None:
                # Discovery will tell of this worker soon, and then its requests must be known.
                replica.behind = True
                self._count("unknown_worker")
            else:
                replica.bookings[request.number] = booking

    def _something_to_say(self) -> bool:
        return bool(self._booked or self._computed or self._freed)

    def _say_soon(self) -> None:
        if not self._something_to_say():
            self._changed()

    def _message(self) -> ReplicaMessage:
        message = ReplicaMessage(self._router, self._sequence)
        if self._snapshot_wanted:
            message.snapshot = True
            message.booked = list(self._open.values())
        else:
            message.booked = list(self._booked.values())
            message.computed, message.freed = self._computed, self._freed
        self._sequence += 1
        self._clear()
        return message

    def _clear(self) -> None:
        self._booked, self._computed, self._freed = {}, [], []
        self._snapshot_wanted = False
