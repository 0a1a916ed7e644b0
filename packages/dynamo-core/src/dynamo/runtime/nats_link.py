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
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias

from dynamo.errors import ConfigError, PluginError
from dynamo.protocols.broker import BrokerOptions
from dynamo.runtime.hosts import host_of, is_local

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

__all__ = ["NatsLink", "Receiver", "check_secret"]

logger = logging.getLogger(__name__)

DEFAULT_SERVER = "nats://127.0.0.1:4222"
_RETRY_SECONDS = 0.25
_CLOSE_SECONDS = 1.0
#: An unanswered ping counts as a lost server after this many intervals: time for one to wait behind a full buffer.
_SILENT_INTERVALS = 3
#: Bytes that wait for the socket: above the first, writers are asked to pause, below the second to go on.
_HIGH_WATER_BYTES = 8 << 20
_LOW_WATER_BYTES = 2 << 20

#: Gets one message; must not block or raise.
Receiver: TypeAlias = Callable[["Msg"], object]


def check_secret(broker: BrokerOptions, secret: bytes, *, insecure: bool) -> None:
    """Refuse to serve over a broker that other machines reach, if there is no secret.

    Raises:
        ConfigError: so it is.
    """
    remote = [server for server in broker.servers if not is_local(host_of(server))]
    if remote and not secret and not insecure:
        raise ConfigError(
            f"other machines can reach NATS at {host_of(remote[0])}, and there is no plane secret",
            param="plane_secret",
            hint="set DYN_PLANE_SECRET or --plane-secret-file; --insecure-planes goes without",
        )


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
            ConfigError: a certificate file cannot be used.
        """
        self._arguments = _connect_arguments(broker)
        self._client_class = _client_class()
        self._servers = broker.servers or (DEFAULT_SERVER,)
        self._timeout_seconds = timeout_seconds
        self._ping_seconds = ping_seconds
        self._keep_messages = keep_messages
        self._on_up = on_up
        self._on_down = on_down
        self._on_pressure = on_pressure
        self._subscriptions: list[tuple[str, Receiver]] = []
        self._outbox: deque[tuple[str, bytes, str]] = deque()
        self._outbox_bytes = 0
        self._dropped = 0
        self._pressure = False
        self._client: Client | None = None
        self._tried = asyncio.Event()
        self._connected = asyncio.Event()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._main: asyncio.Task[None] | None = None
        self.failure = ""
        """Why it is away."""
        self.max_payload = 1 << 20
        """Longest message that the server takes, in bytes."""

    @property
    def connected(self) -> bool:
        """Whether messages travel."""
        return self._client is not None

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

    def add_subscription(self, subject: str, receive: Receiver) -> None:
        """Give every message on `subject` to `receive`, from the next connection on."""
        self._subscriptions.append((subject, receive))

    async def subscribe(self, subject: str, receive: Receiver) -> None:
        """Give every message on `subject` to `receive` from now on."""
        self.add_subscription(subject, receive)
        if self._client is not None:
            with contextlib.suppress(*self._errors()):  # the next connection subscribes anew
                await self._subscribe(self._client, subject, receive)
                await self._client.flush(self._flush_seconds)

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send when the socket takes it. `payload` is at most `max_payload` long."""
        if self._keep_messages:
            if len(self._outbox) >= self._keep_messages:
                self._drop_oldest()
        elif self._client is None:
            return
        self._outbox.append((subject, payload, reply))
        self._outbox_bytes += len(payload)
        self._wake.set()
        if self._outbox_bytes > _HIGH_WATER_BYTES:
            self._press(True)

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
        for attempt, server in enumerate(itertools.cycle(self._servers), 1):
            lost = asyncio.Event()
            client = await self._connect(server, lost)
            if client is not None:
                await self._hold(client, lost)
            elif attempt >= len(self._servers):
                self._note_away()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _connect(self, server: str, lost: asyncio.Event) -> Client | None:
        client = self._client_class()

        async def closed() -> None:
            lost.set()

        async def failed(error: Exception) -> None:
            self.failure = f"{host_of(server)}: {str(error) or type(error).__name__}"
            logger.debug("NATS: %s", self.failure, exc_info=error)

        connecting = client.connect(
            [server],
            # One attempt: a second round would find the pool empty.
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            closed_cb=closed,
            error_cb=failed,
            **self._arguments,
        )
        try:
            if not await self._within(connecting, self._timeout_seconds):
                self.failure = f"{host_of(server)}: no answer within {self._timeout_seconds:g} s"
        except self._errors() as error:
            # Of "no servers left" the reason has been told to `failed`.
            if type(error).__name__ != "NoServersError":
                await failed(error)
        if client.is_connected:
            return client
        await self._discard(client)
        return None

    async def _hold(self, client: Client, lost: asyncio.Event) -> None:
        """Use `client` until it is lost."""
        sender: asyncio.Task[None] | None = None
        try:
            if self._on_up is not None:
                await self._on_up(client)
            for subject, receive in self._subscriptions:
                await self._subscribe(client, subject, receive)
            # Nothing is awaited since the last look at the list: from here on `subscribe` itself tells the server.
            self._client = client
            await client.flush(self._flush_seconds)
            self.max_payload = client.max_payload
            self._note_connected()
            sender = asyncio.get_running_loop().create_task(self._send(client, lost))
            await self._watch(client, lost)
            self.failure = "the connection was closed"
        except self._errors() as error:
            self.failure = str(error) or "no answer to a ping"
        finally:
            self._client = None
            self._connected.clear()
            if sender is not None:
                sender.cancel()
                if self._main is not None:
                    self._note_lost()
            await self._discard(client)

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
                self._wake.clear()
                await self._wake.wait()
        except self._errors() as error:
            logger.debug("publishing to NATS failed: %s", error)
            lost.set()

    async def _send_all(self, client: Client) -> None:
        while self._outbox and client is self._client:
            subject, payload, reply = self._outbox.popleft()
            self._outbox_bytes -= len(payload)
            if self._outbox_bytes < _LOW_WATER_BYTES:
                self._press(False)
            await client.publish(subject, payload, reply)
        self._note_dropped()

    async def _subscribe(self, client: Client, subject: str, receive: Receiver) -> None:
        async def deliver(message: Msg) -> None:
            receive(message)

        await client.subscribe(subject, cb=deliver)

    async def _discard(self, client: Client) -> None:
        with contextlib.suppress(*self._errors()):
            await self._within(client.close(), _CLOSE_SECONDS)

    async def _within(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> bool:
        """Whether `coroutine` ended in time. One that does not is cancelled, but not waited for: it may be deaf."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            task.cancel()
        if not task.done():
            return False
        task.result()
        return True

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark as seen

    def _press(self, high: bool) -> None:
        if high != self._pressure and self._on_pressure is not None:
            self._pressure = high
            self._on_pressure(high)

    def _drop_oldest(self) -> None:
        _, payload, _ = self._outbox.popleft()
        self._outbox_bytes -= len(payload)
        self._dropped += 1
        if self._dropped == 1:
            logger.warning("%d messages wait for NATS: dropping the oldest", self._keep_messages)

    def _note_dropped(self) -> None:
        if self._dropped:
            logger.warning("%d messages to NATS were dropped", self._dropped)
            self._dropped = 0

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
            self._outbox_bytes = 0
            self._press(False)
        if self._on_down is not None:
            self._on_down(self.failure)

    @property
    def _flush_seconds(self) -> int:
        return max(1, round(_SILENT_INTERVALS * self._ping_seconds))

    @staticmethod
    def _errors() -> tuple[type[Exception], ...]:
        from nats.errors import Error

        return (OSError, Error, asyncio.TimeoutError)


def _client_class() -> type[Client]:
    try:
        from nats.aio.client import Client
    except ImportError as error:
        raise PluginError(
            f"NATS needs a package that is not installed: {error}", hint='pip install "dynamo-core[nats]"'
        ) from error
    return Client


def _connect_arguments(broker: BrokerOptions) -> dict[str, Any]:
    arguments = {
        "user": broker.user,
        "password": broker.password,
        "token": broker.token,
        "user_credentials": broker.credentials_file,
        "tls": _tls_context(broker),
    }
    return {name: value for name, value in arguments.items() if value}


def _tls_context(broker: BrokerOptions) -> ssl.SSLContext | None:
    if not (broker.tls_ca_file or broker.tls_certificate_file or broker.tls_insecure):
        return None  # the library makes one when the server asks for TLS
    try:
        context = ssl.create_default_context(cafile=broker.tls_ca_file or None)
        if broker.tls_certificate_file:
            context.load_cert_chain(broker.tls_certificate_file, broker.tls_key_file or None)
    except OSError as error:
        raise ConfigError(
            f"cannot use the certificates for NATS: {error.strerror or error}",
            param="nats_tls_ca_cert_path",
            hint="check --nats-tls-ca-cert-path, --nats-tls-client-cert-path and --nats-tls-client-key-path",
        ) from error
    if broker.tls_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
