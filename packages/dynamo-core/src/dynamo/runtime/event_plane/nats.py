"""The event plane over NATS: a subject per kind of event and namespace, on request kept by JetStream.

With a secret every message carries a MAC, and others are dropped: whoever may publish on the subjects could otherwise
tell routers what workers hold.
"""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING

from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.event_plane import EventHandler, EventPlaneOptions
from dynamo.runtime.event_plane.nats_stream import DurableEvents
from dynamo.runtime.nats_access import check_secret
from dynamo.runtime.nats_link import NatsLink

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

__all__ = ["NatsEventPlane"]

logger = logging.getLogger(__name__)

_PLAIN = b"\0"
_SEALED = b"\1"
_MAC_BYTES = 16


class NatsEventPlane:
    """Implements `dynamo.protocols.event_plane.EventPlane`."""

    def __init__(self, options: EventPlaneOptions) -> None:
        self._options = options
        self._key = hmac.digest(options.secret, b"nats event plane\0", "sha256") if options.secret else b""
        self._handlers: dict[str, list[EventHandler]] = {}
        self._stream = DurableEvents(options.namespace, self._receive) if options.durable else None
        self._link = NatsLink(options.broker, keep_messages=options.queue_messages, on_up=self._up)
        self.foreign_messages = 0
        """Messages without a valid MAC."""
        self.oversized_messages = 0
        """Messages that were longer than the limit of this plane or of the server, and not sent."""

    async def start(self, instance_id: int) -> str:  # noqa: ARG002 - NATS knows who is who
        """Connect; see `EventPlane.start`."""
        check_secret(self._options.broker, self._options.secret, insecure=self._options.insecure)
        await self._link.open()
        return ""

    def publish(self, subject: str, payload: bytes) -> None:
        """Queue for sending. Drops the oldest when NATS is slow or away for long."""
        full = self._subject(subject)
        message = _SEALED + self._mac(full, payload) + payload if self._key else _PLAIN + payload
        if len(message) > min(self._link.max_payload, self._options.max_message_bytes):
            self.oversized_messages += 1
            if self.oversized_messages == 1:
                logger.warning("dropping events above %d bytes, the limit of NATS", self._link.max_payload)
            return
        self._link.publish(full, message)

    async def subscribe(self, subject: str, handler: EventHandler) -> None:
        """Listen to all peers; with a durable plane also to what they sent in the last minutes."""
        full = self._subject(subject)
        handlers = self._handlers.setdefault(full, [])
        handlers.append(handler)
        if len(handlers) > 1:
            return
        if self._stream is not None:
            await self._stream.subscribe(full)
        else:
            await self._link.subscribe(full, self._receive)

    def add_peer(self, record: InstanceRecord) -> None:
        """Nothing: NATS knows the peers."""

    def remove_peer(self, record: InstanceRecord) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Send what is queued, and disconnect."""
        await self._link.close()

    def _subject(self, subject: str) -> str:
        return f"dynamo.{self._options.namespace}.events.{subject}"

    def _mac(self, subject: str, payload: bytes) -> bytes:
        return hmac.digest(self._key, subject.encode() + b"\0" + payload, "sha256")[:_MAC_BYTES]

    async def _up(self, client: Client) -> None:
        if self._stream is not None:
            await self._stream.attach(client)

    def _receive(self, message: Msg) -> None:
        payload = self._open(message.subject, message.data)
        if payload is None:
            self.foreign_messages += 1
            if self.foreign_messages == 1:
                logger.warning("dropping events on %s that carry another plane secret, or none", message.subject)
            return
        for handler in self._handlers.get(message.subject, ()):
            try:
                handler(payload)
            except Exception:
                logger.exception("event handler failed")

    def _open(self, subject: str, message: bytes) -> bytes | None:
        if not self._key:
            return message[1:] if message[:1] == _PLAIN else None
        mac, payload = message[1 : 1 + _MAC_BYTES], message[1 + _MAC_BYTES :]
        if message[:1] != _SEALED or not hmac.compare_digest(mac, self._mac(subject, payload)):
            return None
        return payload
