"""The event plane: small messages from one process to all that listen (KV events, load, router replica sync).

A plane moves bytes and may lose some; whoever needs completeness numbers its messages and asks for a snapshot at a gap,
as KV events do (DESIGN 4.2).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from dynamo.protocols.broker import BrokerOptions
from dynamo.protocols.discovery import InstanceRecord

__all__ = ["EventHandler", "EventPlane", "EventPlaneOptions"]

#: Gets the payload of one message; must not block or raise.
EventHandler: TypeAlias = Callable[[bytes], None]


class EventPlaneOptions(msgspec.Struct, frozen=True):
    """What an event plane is made of."""

    namespace: str = "dynamo"
    host: str = "127.0.0.1"
    """Address to bind and to announce, for planes without a broker."""
    secret: bytes = b""
    """Shared secret of the deployment."""
    insecure: bool = False
    """Allow an empty secret on an address that other machines can reach."""
    broker: BrokerOptions = BrokerOptions()
    """For planes that have a broker."""
    durable: bool = False
    """Have the broker keep events for a while and give them to subscribers that come later, if it can."""
    state_directory: Path = Path()
    max_message_bytes: int = 8 << 20
    queue_messages: int = 10_000
    """Messages that wait for a slow peer; beyond it the oldest are dropped."""


class EventPlane(Protocol):
    """An event plane of this process, both sides. Methods are called on one event loop."""

    async def start(self, instance_id: int) -> str:
        """Connect or bind; the address that peers need, which goes into discovery, or "" where a broker knows.

        A broker that is away is waited for in the background.

        Raises:
            ConfigError: the address is open to other machines and there is no secret, or the broker refuses us.
            CannotConnect: the address cannot be bound.
        """
        ...

    def publish(self, subject: str, payload: bytes) -> None:
        """Send to every subscriber of `subject` in this namespace. Never blocks; drops when a peer cannot keep up."""
        ...

    async def subscribe(self, subject: str, handler: EventHandler) -> None:
        """Call `handler` with every message on `subject` from now on, of all peers, including this process."""
        ...

    def add_peer(self, record: InstanceRecord) -> None:
        """A process that may publish appeared in discovery. Planes with a broker ignore it."""
        ...

    def remove_peer(self, record: InstanceRecord) -> None:
        """It is gone."""
        ...

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        ...
