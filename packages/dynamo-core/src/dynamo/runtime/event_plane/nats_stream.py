"""Events kept by JetStream: a bounded stream per namespace, read from its beginning and then followed.

Publishing needs nothing of this: JetStream stores what is published on the stream's subjects.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from dynamo.runtime.nats_access import client_errors
from dynamo.runtime.nats_link import Receiver

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js.client import JetStreamContext

__all__ = ["MAX_AGE_SECONDS", "MAX_BYTES", "DurableEvents"]

logger = logging.getLogger(__name__)

MAX_AGE_SECONDS = 600
MAX_BYTES = 256 << 20


class DurableEvents:
    """The stream of one namespace, and how far this process has read each subject."""

    def __init__(self, namespace: str, receive: Receiver) -> None:
        self._name = f"dynamo-{namespace}-events"
        self._subjects = f"dynamo.{namespace}.events.>"
        self._receive = receive
        self._read: dict[str, int] = {}
        self._created: object = None
        self._client: Client | None = None
        self._context: JetStreamContext | None = None

    async def attach(self, client: Client) -> None:
        """Make sure that the stream exists, and go on reading; after every connect.

        Without JetStream in the server, events are only heard live.
        """
        self._client = None
        context = client.jetstream()
        try:
            await self._create(context)
            self._context = context
        except client_errors() as error:
            self._context = None
            logger.warning("NATS does not keep events, they are only heard live: %s", str(error) or "no JetStream")
        known: set[str] = set()
        while missing := self._read.keys() - known:
            subject = missing.pop()
            await self._listen(client, subject)
            known.add(subject)
        self._client = client

    async def subscribe(self, subject: str) -> None:
        """Read `subject` from the beginning of what is kept."""
        self._read[subject] = 0
        if self._client is not None:
            with contextlib.suppress(*client_errors()):  # the next connection listens anew
                await self._listen(self._client, subject)

    async def _listen(self, client: Client, subject: str) -> None:
        if self._context is not None:
            try:
                await self._follow(self._context, subject)
            except client_errors() as error:
                logger.warning("cannot read kept events on %s, they are only heard live: %s", subject, error)
            else:
                return
        await client.subscribe(subject, cb=self._deliver)

    async def _create(self, context: JetStreamContext) -> None:
        from nats.js.api import DiscardPolicy, StreamConfig
        from nats.js.errors import BadRequestError

        config = StreamConfig(
            name=self._name,
            subjects=[self._subjects],
            max_age=MAX_AGE_SECONDS,
            max_bytes=MAX_BYTES,
            discard=DiscardPolicy.OLD,
        )
        try:
            info = await context.add_stream(config)
        except BadRequestError:  # it exists with other limits, made by another version
            info = await context.update_stream(config)
        if info.created != self._created:
            # Another stream than before: the server has lost its store, and counts from one.
            self._created = info.created
            self._read = dict.fromkeys(self._read, 0)

    async def _follow(self, context: JetStreamContext, subject: str) -> None:
        from nats.js.api import ConsumerConfig, DeliverPolicy

        read = self._read[subject]
        config = (
            ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=read + 1)
            if read
            else ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
        )
        await context.subscribe(subject, stream=self._name, config=config, ordered_consumer=True, cb=self._deliver)

    async def _deliver(self, message: Msg) -> None:
        if message.reply:
            # An ordered consumer that was made anew may repeat itself.
            sequence = message.metadata.sequence.stream
            if sequence <= self._read[message.subject]:
                return
            self._read[message.subject] = sequence
        self._receive(message)
