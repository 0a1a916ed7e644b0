"""One connection to NATS that comes back by itself; each plane over NATS has its own.

Two planes of a process do not share a connection: a flood of events must not hold up, or get disconnected, the streams.
The client library's own reconnecting is not used: it sends what it had buffered before an outage to peers that have
given up on it since, and a hung server can block it. Here every connection is a fresh client.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dynamo.errors import ConfigError
from dynamo.protocols.broker import BrokerOptions
from dynamo.runtime.hosts import host_of
from dynamo.runtime.nats_access import abort, client_class, client_errors, connect_arguments, is_loss
from dynamo.runtime.nats_outbox import Outbox

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

__all__ = ["NatsLink", "Receiver", "Subscription"]

logger = logging.getLogger(__name__)

DEFAULT_SERVER = "nats://127.0.0.1:4222"
#: Between attempts: doubled up to the second, and spread, so that a server that comes back is not stormed.
_RETRY_SECONDS = 0.25
_RETRY_LIMIT_SECONDS = 2.0
#: Errors that the server reports on one connection (permissions, a slow consumer) and that are logged.
_REPORTS = 10
_CLOSE_SECONDS = 1.0
#: Sent before the server has to answer a ping. The library does not hold publishers back on every version of asyncio.
_UNCONFIRMED_BYTES = 4 << 20
#: An unanswered ping counts as a lost server after this many intervals: time for one to wait behind a full buffer.
_SILENT_INTERVALS = 3

#: Gets one message; must not block or raise.
Receiver: TypeAlias = Callable[["Msg"], object]


class Subscription:
    """What a `NatsLink` subscribes to on every connection; of all with one `queue`, in any process, one gets each."""

    def __init__(self, subject: str, receive: Receiver, queue: str = "") -> None:
        self.subject = subject
        self.receive = receive
        self.queue = queue
        self.client: Client | None = None
        """The connection that knows it, or the last one that did."""
        self.there: Any = None
        """The client library's object for it on that connection; its methods have no types."""

    async def deliver(self, message: Msg) -> None:
        """The client library's callback."""
        self.receive(message)


class NatsLink:
    """Subscriptions that outlive a connection, and publishing that never blocks."""

    def __init__(
        self,
        broker: BrokerOptions,
        *,
        timeout_seconds: float = 5.0,
        ping_seconds: float = 2.0,
        keep_messages: int = 0,
        on_up: Callable[[Client], Awaitable[None]] | None = None,
        on_down: Callable[[str], None] | None = None,
        on_pressure: Callable[[bool], None] | None = None,
    ) -> None:
        """Not connected yet.

        `keep_messages` wait while NATS is away or slow, and beyond it the oldest are dropped. With 0 none waits for
        NATS to come back, and `on_pressure` tells when too much waits for the socket.

        Raises:
            PluginError: the client library is not installed.
            ConfigError: a URL, a certificate file or a credentials file cannot be used.
        """
        self._client_class = client_class()
        self._arguments = connect_arguments(broker)
        self._servers = broker.servers or (DEFAULT_SERVER,)
        self._timeout_seconds = timeout_seconds
        self._ping_seconds = ping_seconds
        self._keep_messages = keep_messages
        self._on_up = on_up
        self._on_down = on_down
        self._subscriptions: list[Subscription] = []
        self._outbox = Outbox(keep_messages, on_pressure)
        self._client: Client | None = None
        self._tried = asyncio.Event()
        self._connected = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._main: asyncio.Task[None] | None = None
        self._unconfirmed_bytes = 0
        self._unexplained = False
        self.failure = ""
        """Why it is away."""
        self.max_payload = 1 << 20
        """Longest message that the server takes, in bytes."""

    @property
    def connected(self) -> bool:
        """Whether messages travel."""
        return self._client is not None

    @property
    def congested(self) -> bool:
        """Whether writers should pause."""
        return self._outbox.congested

    @property
    def away(self) -> bool:
        """Whether NATS is known not to be there; false before the first attempt has ended."""
        return self._tried.is_set() and self._client is None

    def start(self) -> None:
        """Connect, and connect again, until `close`. Idempotent."""
        if self._main is None:
            self._main = asyncio.get_running_loop().create_task(self._run())

    async def open(self) -> None:
        """Start, and wait until every server has been tried once or one has answered.

        Raises:
            ConfigError: a server refused our credentials.
        """
        self.start()
        await self._tried.wait()
        if not self.connected and "authorization" in self.failure.lower():
            raise ConfigError(
                f"NATS refused this process: {self.failure}",
                param="nats_servers",
                hint="check NATS_USER and NATS_PASSWORD, NATS_TOKEN or NATS_CREDS",
            )

    async def wait_connected(self, seconds: float) -> bool:
        """Start, and wait for a connection; whether it came."""
        self.start()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._connected.wait(), seconds)
        return self.connected

    def add_subscription(self, subject: str, receive: Receiver, queue: str = "") -> Subscription:
        """Give every message on `subject` to `receive`, from the next connection on."""
        subscription = Subscription(subject, receive, queue)
        self._subscriptions.append(subscription)
        return subscription

    async def subscribe(self, subject: str, receive: Receiver) -> None:
        """Give every message on `subject` to `receive` from now on."""
        await self.begin([self.add_subscription(subject, receive)])

    async def begin(self, subscriptions: Sequence[Subscription]) -> None:
        """Have what was added start now; without a connection, with the next one."""
        client = self._client
        if client is None:
            return
        with contextlib.suppress(*client_errors()):  # the next connection subscribes anew
            for subscription in subscriptions:
                await self._subscribe(client, subscription)
            await self._settle(client)

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Give no more messages to it, once those on their way have come. Idempotent; takes a second at most."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        if self._client is not None and subscription.there is not None:
            with contextlib.suppress(*client_errors()):  # a lost connection has no subscriptions
                # The library's `unsubscribe` would drop what the server sends before it knows.
                await self._within(subscription.there.drain(), _CLOSE_SECONDS)

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send when the socket takes it. `payload` is at most `max_payload` long."""
        if self._keep_messages or self._client is not None:
            self._outbox.put(subject, payload, reply)

    async def close(self) -> None:
        """Send what is queued, and disconnect. Idempotent."""
        main, self._main = self._main, None
        if main is None:
            return
        if self._client is not None:
            client = self._client
            await self._within(self._send_all(client), _CLOSE_SECONDS)
        main.cancel()
        await asyncio.gather(main, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()

    async def _run(self) -> None:
        failures = 0
        for server in itertools.cycle(self._servers):
            if await self._use(server):
                failures = 0
            else:
                failures += 1
                if failures >= len(self._servers):
                    self._note_away()
            delay = min(_RETRY_LIMIT_SECONDS, _RETRY_SECONDS * 2 ** min(failures // len(self._servers), 8))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def _use(self, server: str) -> bool:
        """Connect to `server` and hold the connection until it is lost; whether there was one."""
        lost = asyncio.Event()
        client = await self._connect(server, lost)
        if client is None:
            if self._unexplained:
                await self._ask_why(server)
            return False
        try:
            return await self._hold(client, lost)
        except Exception:
            # The library is foreign code: whatever it raises, this link must come back.
            logger.exception("connection to NATS failed")
            return False

    async def _ask_why(self, server: str) -> None:
        """Learn the reason of a refusal, which a reset can overtake unless the server acknowledges each step."""
        client = await self._connect(server, asyncio.Event(), verbose=True)
        if client is not None:
            await self._discard(client)

    async def _connect(self, server: str, lost: asyncio.Event, *, verbose: bool = False) -> Client | None:
        client = self._client_class()
        reports = itertools.count()

        async def closed() -> None:
            lost.set()

        async def failed(error: Exception) -> None:
            self.failure = f"{host_of(server)}: {str(error) or type(error).__name__}"
            self._unexplained = isinstance(error, (ConnectionResetError, BrokenPipeError))
            if client.is_connected and not is_loss(error) and next(reports) < _REPORTS:
                logger.warning("NATS: %s", self.failure)

        connecting = client.connect(
            [server],
            # One attempt: a second round would find the pool empty.
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            closed_cb=closed,
            error_cb=failed,
            verbose=verbose,
            **self._arguments,
        )
        self.failure = f"{host_of(server)}: the connection was closed"
        self._unexplained = True
        try:
            if not await self._within(connecting, self._timeout_seconds):
                self.failure = f"{host_of(server)}: no answer within {self._timeout_seconds:g} s"
                self._unexplained = False
        except client_errors() as error:
            # Of "no servers left" the reason has been told to `failed`.
            if type(error).__name__ != "NoServersError":
                await failed(error)
        if client.is_connected:
            return client
        await self._discard(client)
        return None

    async def _hold(self, client: Client, lost: asyncio.Event) -> bool:
        """Use `client` until it is lost; whether it was usable."""
        sender: asyncio.Task[None] | None = None
        try:
            if self._on_up is not None:
                await self._on_up(client)
            while missing := [known for known in self._subscriptions if known.client is not client]:
                await self._subscribe(client, missing[0])
            # Nothing is awaited since the last look at the list: from here on `subscribe` itself tells the server.
            self._client = client
            await self._settle(client)
            self.max_payload = client.max_payload
            self._note_connected()
            sender = asyncio.get_running_loop().create_task(self._send(client, lost))
            await self._watch(client, lost)
            self.failure = self.failure or "the connection was closed"
        except client_errors() as error:
            self.failure = str(error) or "no answer to a ping"
        finally:
            self._client = None
            self._connected.clear()
            if sender is not None:
                sender.cancel()
                if self._main is not None:
                    self._note_lost()
            await self._discard(client)
        return sender is not None

    async def _watch(self, client: Client, lost: asyncio.Event) -> None:
        while not lost.is_set():
            try:
                await asyncio.wait_for(lost.wait(), self._ping_seconds)
            except asyncio.TimeoutError:
                await client.flush(self._flush_seconds)

    async def _send(self, client: Client, lost: asyncio.Event) -> None:
        try:
            # The library swallows cancellation at times, so this looks for itself whether it is still wanted.
            while client is self._client:
                await self._send_all(client)
                await self._outbox.wait()
        except client_errors() as error:
            logger.debug("publishing to NATS failed: %s", error)
            lost.set()

    async def _send_all(self, client: Client) -> None:
        while self._outbox and client is self._client:
            message = self._outbox.take()
            await client.publish(*message)
            self._unconfirmed_bytes += len(message[1])
            if self._unconfirmed_bytes > _UNCONFIRMED_BYTES:
                self._unconfirmed_bytes = 0
                await client.flush(self._flush_seconds)

    async def _subscribe(self, client: Client, subscription: Subscription) -> None:
        subscription.client = client
        subscription.there = await client.subscribe(
            subscription.subject, queue=subscription.queue, cb=subscription.deliver
        )

    async def _settle(self, client: Client) -> None:
        """Wait until the server knows the subscriptions."""
        # The library's ping overtakes what it has buffered: only a second one comes after the subscription.
        for _ in range(2):
            await client.flush(self._flush_seconds)

    async def _discard(self, client: Client) -> None:
        with contextlib.suppress(*client_errors()):
            if not await self._within(client.close(), _CLOSE_SECONDS):
                abort(client)

    async def _within(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> bool:
        """Whether `coroutine` ended in time. One that does not is cancelled, but not waited for: it may be deaf."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            task.cancel()
        if not task.done() or task.cancelled():
            return False
        task.result()
        return True

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark as seen

    def _note_away(self) -> None:
        if not self._tried.is_set():
            self._tried.set()
            logger.warning("NATS cannot be reached, trying again in the background: %s", self.failure)

    def _note_connected(self) -> None:
        if self._tried.is_set():
            logger.info("NATS is back")
        self._tried.set()
        self._connected.set()
        self.failure = ""

    def _note_lost(self) -> None:
        logger.warning("NATS was lost, connecting again in the background: %s", self.failure)
        if not self._keep_messages:
            self._outbox.clear()
        if self._on_down is not None:
            self._on_down(self.failure)

    @property
    def _flush_seconds(self) -> int:
        return max(1, round(_SILENT_INTERVALS * self._ping_seconds))
