"""Claims over NATS: the ready instances of an endpoint are one queue group, and NATS picks the member that answers.

Each data-parallel rank is a member of its own, so that ranks, not processes, get equal parts. The subject of a group is
announced with each record: who does not announce it (an instance of protocol 1.0) would never be picked, and so a
client asks only a group that all instances it may choose from belong to.

An ask and its answer have a channel and keys of their own, as a connection does, and can be neither forged nor replayed
to a client::

    client -> group.CHANNEL    kind CLAIM, number 0
    worker -> inbox.CHANNEL    kind CLAIM, number 0, msgpack map {instance_id, dp_rank}; empty: full, or draining
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from dynamo.errors import TransportError
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.claims import Claim
from dynamo.protocols.discovery import InstanceRecord
from dynamo.runtime.nats_link import NatsLink, Subscription
from dynamo.runtime.request_plane.nats_transport import (
    CHANNEL_BYTES,
    CLAIM,
    Channels,
    Envelope,
    channel_of,
    is_status,
    is_subject,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["GROUP_TRANSPORT", "ClaimDesk", "ClaimGroup", "group_subject"]

logger = logging.getLogger(__name__)

#: Key of the group's subject in `InstanceRecord.transports`.
GROUP_TRANSPORT = "nats-group"
_QUEUE = "claims"
_PLANE = "nats"
#: A group in which somebody hangs is left alone for so long: the members that hang are asked once in it, not always.
_PAUSE_SECONDS = 1.0


class _Answer(msgspec.Struct, omit_defaults=True, frozen=True):
    instance_id: int | None = None
    dp_rank: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Answer).decode


def group_subject(record: InstanceRecord) -> str:
    """The subject of the instances that serve the same model at the same endpoint."""
    model = record.card.model if record.card is not None else ""
    digest = hashlib.sha256(model.encode()).hexdigest()[:16]  # a model's name need not be a subject
    return f"dyn.{record.namespace}.endpoint.{record.component}.{record.endpoint}.{digest}"


class ClaimGroup:
    """The serving side: what one process is a member of. `draining` tells that it takes no new requests."""

    def __init__(self, link: NatsLink, secret: bytes, draining: Callable[[], bool]) -> None:
        self._link = link
        self._secret = secret
        self._draining = draining
        self._joined: dict[str, list[Subscription]] = {}
        self.outcomes = Counter(claimed=0, declined=0, refused=0)
        """Asks by what they were answered; refused: no peer's, and not answered."""

    async def join(self, record: InstanceRecord, has_room: Callable[[], bool]) -> None:
        """See `dynamo.protocols.claims.ClaimingServer`."""
        subject = record.transports.get(GROUP_TRANSPORT, "")
        if not subject or subject in self._joined:
            return

        def willing() -> bool:
            # A member that has left gets what was on its way to it.
            return subject in self._joined and not self._draining() and has_room()

        ranks = max(1, record.card.dp_size) if record.card is not None else 1
        keys = [WorkerKey(record.id, rank) for rank in range(ranks)]
        members = [_Member(self._link, self._secret, key, willing, self.outcomes) for key in keys]
        self._joined[subject] = subscriptions = [
            self._link.add_subscription(f"{subject}.*", member.receive, _QUEUE) for member in members
        ]
        await self._link.begin(subscriptions)

    async def leave(self) -> None:
        """See `dynamo.protocols.claims.ClaimingServer`."""
        joined, self._joined = self._joined, {}
        members = [subscription for subscriptions in joined.values() for subscription in subscriptions]
        await asyncio.gather(*map(self._link.unsubscribe, members))


class _Member:
    """One rank in one group."""

    def __init__(
        self, link: NatsLink, secret: bytes, worker: WorkerKey, willing: Callable[[], bool], outcomes: Counter[str]
    ) -> None:
        self._link = link
        self._secret = secret
        self._willing = willing
        self._outcomes = outcomes
        self._claim = _encode(_Answer(worker.instance_id, worker.dp_rank))

    def receive(self, message: Msg) -> None:
        """An ask."""
        if is_status(message) or not is_subject(message.reply):
            return
        envelope = Envelope(self._secret, channel_of(message), asking=False)
        opened = envelope.open(message.data)
        # Later versions may say more in the data of an ask.
        if opened is None or opened[:2] != (CLAIM, 0):
            logger.debug("ignoring an ask on %s that is no peer's", message.subject)
            self._outcomes["refused"] += 1
            return
        willing = self._willing()
        self._outcomes["claimed" if willing else "declined"] += 1
        self._link.publish(message.reply, envelope.seal(CLAIM, 0, self._claim if willing else _encode({})))


class ClaimDesk:
    """The asking side of one process."""

    def __init__(self, link: NatsLink, secret: bytes, inbox: str, channels: Channels, seconds: float) -> None:
        """`channels` receive on ``inbox.*``; who does not answer within `seconds` does not claim."""
        self._link = link
        self._secret = secret
        self._inbox = inbox
        self._channels = channels
        self._seconds = seconds
        self._paused_until: dict[str, float] = {}
        self.outcomes = Counter(claimed=0, declined=0, nobody=0, silent=0, lost=0)
        """Asks by how they ended. Nobody: the group was empty; silent: no answer in time; lost: NATS went away."""

    def ask(self, instances: Sequence[InstanceRecord]) -> asyncio.Future[Claim | None] | None:
        """See `dynamo.protocols.claims.ClaimingPlane`."""
        groups = {instance.transports.get(GROUP_TRANSPORT, "") for instance in instances}
        subject = groups.pop()
        if groups or not is_subject(subject):
            return None
        if not self._link.connected:
            self._link.start()
            return None
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until.get(subject, 0.0):
            return None
        channel = secrets.token_hex(CHANNEL_BYTES)
        envelope = Envelope(self._secret, channel, asking=True)
        ask = _Ask(envelope, lambda: self._channels.transports.pop(channel, None), self.outcomes)
        self._channels.transports[channel] = ask
        timer = loop.call_later(self._seconds, self._silent, subject, ask)
        ask.answer.add_done_callback(lambda _: timer.cancel())
        self._link.publish(f"{subject}.{channel}", envelope.seal(CLAIM, 0), f"{self._inbox}.{channel}")
        return ask.answer

    def _silent(self, subject: str, ask: _Ask) -> None:
        logger.debug("nobody claimed a request on %s within %g s", subject, self._seconds)
        self._paused_until[subject] = asyncio.get_running_loop().time() + _PAUSE_SECONDS
        ask.end("silent")


class _Ask:
    """Implements `dynamo.runtime.request_plane.nats_transport.Channel` for one ask."""

    def __init__(self, envelope: Envelope, forget: Callable[[], object], outcomes: Counter[str]) -> None:
        self._envelope = envelope
        self._forget = forget
        self._outcomes = outcomes
        self.answer: asyncio.Future[Claim | None] = asyncio.get_running_loop().create_future()

    def receive(self, message: bytes) -> None:
        """A worker's answer, or anything."""
        opened = self._envelope.open(message)
        if opened is None or opened[:2] != (CLAIM, 0):
            return  # forged: the true answer may still come
        try:
            answer = _decode(opened[2])
        except msgspec.MsgspecError:
            answer = _Answer()
        if answer.instance_id is None:
            self.end("declined")
        else:
            self.end("claimed", Claim(WorkerKey(InstanceId(answer.instance_id), answer.dp_rank), _PLANE))

    def nobody_listens(self) -> None:
        """The group is empty."""
        self.end("nobody")

    def fail(self, error: TransportError) -> None:  # noqa: ARG002
        """NATS is away."""
        self.end("lost")

    def press(self, high: bool) -> None:
        """Nothing more is written."""

    def end(self, outcome: str, claim: Claim | None = None) -> None:
        """The ask is over."""
        self._forget()
        if not self.answer.done():
            self._outcomes[outcome] += 1
            self.answer.set_result(claim)
