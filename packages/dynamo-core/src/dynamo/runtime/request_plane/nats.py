"""The request plane over NATS: the streams of the tcp plane, with a subject per instance in place of an address.

For deployments where workers cannot be connected to, or whose only open port is the broker's. It costs two hops more.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from dynamo.errors import CannotConnect
from dynamo.protocols.addressing import format_instance_id
from dynamo.protocols.claims import Claim
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.nats_access import check_secret
from dynamo.runtime.nats_link import NatsLink
from dynamo.runtime.request_plane.client import ClientConnection
from dynamo.runtime.request_plane.nats_claims import GROUP_TRANSPORT, ClaimDesk, ClaimGroup, group_subject
from dynamo.runtime.request_plane.nats_transport import (
    CHANNEL_BYTES,
    DIAL,
    Channels,
    Envelope,
    NatsTransport,
    Route,
    channel_of,
    is_status,
    is_subject,
    refuse,
)
from dynamo.runtime.request_plane.pool import ConnectionPool
from dynamo.runtime.request_plane.server import ServerConnection, ServerHost

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["MAX_CHANNELS", "NatsRequestPlane", "NatsServer"]

logger = logging.getLogger(__name__)

#: Connections to one serving process. On tcp the limit of open files has this part.
MAX_CHANNELS = 16384


class NatsServer(ServerHost):
    """The serving side in this process; implements `dynamo.protocols.claims.ClaimingServer` too."""

    def __init__(self, options: PlaneOptions, link: NatsLink, subject: str) -> None:
        super().__init__(options)
        self.subject = subject
        self.channels = Channels()
        self._link = link
        self._refused = 0
        self._group = ClaimGroup(link, options.secret, lambda: self.draining)

    @property
    def transports(self) -> dict[str, str]:
        """Its subject, for discovery."""
        return {NatsRequestPlane.transport: self.subject}

    def offer(self, record: InstanceRecord) -> InstanceRecord:
        """`record` with the subject of its group, if it serves a model; see `ClaimingServer`."""
        if record.card is None:
            return record
        transports = {**record.transports, GROUP_TRANSPORT: group_subject(record)}
        return msgspec.structs.replace(record, transports=transports)

    async def join(self, record: InstanceRecord, has_room: Callable[[], bool]) -> None:
        """See `ClaimingServer`."""
        await self._group.join(record, has_room)

    async def leave(self) -> None:
        """See `ClaimingServer`."""
        await self._group.leave()

    @property
    def claim_outcomes(self) -> Mapping[str, int]:
        """See `dynamo.protocols.claims.CountsClaims`."""
        return self._group.outcomes

    def receive(self, message: Msg) -> None:
        """One message to this instance."""
        if not self.channels.receive(message) and not is_status(message) and is_subject(message.reply):
            self._accept(message)

    def _accept(self, message: Msg) -> None:
        channel = channel_of(message)
        envelope = Envelope(self.options.secret, channel, asking=False)
        opened = envelope.open(message.data)
        if opened is None:
            self._refused += 1
            if self._refused == 1:
                logger.warning("refusing peers on %s that do not know this deployment's plane secret", self.subject)
            refuse(self._link, envelope, message.reply, "wrong plane secret")
        elif opened != (DIAL, 0, b""):
            refuse(self._link, envelope, message.reply, "there is no such connection")
        elif len(self.channels.transports) >= MAX_CHANNELS:
            refuse(self._link, envelope, message.reply, f"{MAX_CHANNELS} connections are open")
        else:
            route = Route(message.reply, message.subject)
            connection = ServerConnection(self)
            NatsTransport(self._link, self.channels, channel, connection, envelope, route).open(dial=False)


class NatsRequestPlane(ConnectionPool):
    """Implements `RequestPlane` and `ConnectingPlane` of `dynamo.protocols.planes`, and `ClaimingPlane`."""

    transport = "nats"

    def __init__(self, options: PlaneOptions) -> None:
        super().__init__(options)
        self._link = NatsLink(
            options.broker,
            timeout_seconds=options.connect_timeout_seconds,
            ping_seconds=options.keepalive_seconds,
            on_down=self._lost,
            on_pressure=self._press,
        )
        self._inbox = f"dyn.{options.namespace}.inbox.{secrets.token_hex(CHANNEL_BYTES)}"
        self._inbox_channels = Channels()
        self._channels = [self._inbox_channels]
        self._link.add_subscription(f"{self._inbox}.*", self._inbox_channels.receive)
        self._desk = ClaimDesk(self._link, options.secret, self._inbox, self._inbox_channels, options.claim_seconds)

    def claim(self, instances: Sequence[InstanceRecord]) -> asyncio.Future[Claim | None] | None:
        """See `ClaimingPlane`."""
        return self._desk.ask(instances)

    @property
    def claim_outcomes(self) -> Mapping[str, int]:
        """See `dynamo.protocols.claims.CountsClaims`."""
        return self._desk.outcomes

    def reaches(self, instance: InstanceRecord) -> bool:
        """Whether `instance` announces a subject, and NATS is not known to be away."""
        return super().reaches(instance) and not self._link.away

    async def connect(self) -> None:
        """See `ConnectingPlane`."""
        await self._link.open()

    async def close(self) -> None:
        """Close both sides, and the connection to NATS."""
        await super().close()
        await self._link.close()

    async def _listen(self, instance_id: int) -> NatsServer:
        options = self.options
        check_secret(options.broker, options.secret, insecure=options.insecure)
        subject = f"dyn.{options.namespace}.instance.{format_instance_id(instance_id)}"
        server = NatsServer(options, self._link, subject)
        self._channels.append(server.channels)
        await self._link.subscribe(f"{subject}.*", server.receive)
        await self._link.open()
        return server

    async def _connect(self, connection: ClientConnection) -> None:
        address = connection.address
        if not is_subject(address):
            connection.close(CannotConnect(f"{address!r} is not a subject of a peer"))
            return
        if not await self._link.wait_connected(self.options.connect_timeout_seconds):
            connection.close(CannotConnect(f"cannot connect to {address}: NATS is away: {self._link.failure}"))
            return
        channel = secrets.token_hex(CHANNEL_BYTES)
        envelope = Envelope(self.options.secret, channel, asking=True)
        route = Route(f"{address}.{channel}", f"{self._inbox}.{channel}")
        NatsTransport(self._link, self._inbox_channels, channel, connection, envelope, route).open(dial=True)

    def _lost(self, reason: str) -> None:
        for channels in self._channels:
            channels.lost(reason)

    def _press(self, high: bool) -> None:
        for channels in self._channels:
            channels.press(high)
