"""DistributedRuntime: what one process of a deployment owns, and the way it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry
from typing_extensions import Self

from dynamo.config.variables import misspelt_variables
from dynamo.errors import ConfigError, DynamoError, PluginError
from dynamo.protocols.addressing import EndpointAddress, InstanceId, new_instance_id
from dynamo.protocols.claims import ClaimingServer
from dynamo.protocols.discovery import Discovery, InstanceRecord
from dynamo.protocols.event_plane import EventPlane, EventPlaneOptions
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.planes import ConnectingPlane, Handler, PlaneOptions, PlaneServer, RequestPlane
from dynamo.runtime.claim_metrics import ClaimCollector
from dynamo.runtime.client import EndpointClient
from dynamo.runtime.discovery import create_discovery
from dynamo.runtime.event_plane import create_event_plane
from dynamo.runtime.health import Health, serve_system_port
from dynamo.runtime.hosts import host_of, is_local
from dynamo.runtime.http import HttpServer
from dynamo.runtime.instances import Instances
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.settings import RuntimeSettings
from dynamo.runtime.telemetry import configure_logging
from dynamo.runtime.tracing import Tracing, create_tracing

__all__ = ["EXIT_CONFIG", "DistributedRuntime", "config_errors_end_the_process", "plane_secret", "run_process"]

logger = logging.getLogger(__name__)

#: Exit status of a process that would fail the same way again (sysexits.h: EX_CONFIG); schedulers do not restart it.
EXIT_CONFIG = 78


class DistributedRuntime:
    """Discovery, request plane, health, metrics and the system port of this process.

    ::

        async with DistributedRuntime(settings) as runtime:
            await runtime.serve_endpoint(EndpointAddress.parse("dyn://ns.worker.generate"), handler)
            await runtime.stopping.wait()
    """

    def __init__(self, settings: RuntimeSettings, service: str = "dynamo") -> None:
        self.settings = settings
        self.instance_id: InstanceId = new_instance_id()
        self.health = Health()
        self.metrics = CollectorRegistry()
        self.tracing: Tracing = create_tracing(service)
        self.stopping = asyncio.Event()
        self.discovery: Discovery = create_discovery(settings.discovery_url())
        self.request_plane: RequestPlane = create_request_plane(
            settings.request_plane, _plane_options(settings), _fallback_plane(settings)
        )
        self.event_plane: EventPlane | None = (
            create_event_plane(settings.event_plane, _event_options(settings)) if settings.event_plane else None
        )
        self.instances = Instances(self.discovery, settings.namespace)
        self.system_server: HttpServer | None = None
        self._plane_server: PlaneServer | None = None
        self.metrics.register(ClaimCollector(lambda: [("asking", self.request_plane), ("serving", self._plane_server)]))
        self._event_transports: dict[str, str] = {}
        self._records: list[InstanceRecord] = []
        self._has_room: dict[EndpointAddress, Callable[[], bool]] = {}

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect to discovery and to the planes' brokers, and open the system port.

        Raises:
            ConfigError: a broker refuses us.
            DiscoveryError: the backend cannot be reached.
            CannotConnect: the system port is taken.
        """
        await self.discovery.start()
        await self._start_events()
        if isinstance(self.request_plane, ConnectingPlane):
            await self.request_plane.connect()
        self.instances.start()
        if self.settings.system_port >= 0:
            self.system_server = await serve_system_port(
                self.settings.system_host, self.settings.system_port, self.health, self.metrics
            )

    async def serve_endpoint(
        self,
        address: EndpointAddress,
        handler: Handler,
        *,
        card: ModelDeploymentCard | None = None,
        metadata: Mapping[str, str] | None = None,
        announce: bool = True,
        has_room: Callable[[], bool] = lambda: True,
    ) -> InstanceRecord:
        """Serve `address` with `handler`, and announce it unless told otherwise.

        While `has_room` is false no request is claimed (`dynamo.protocols.claims`); those that come are served.

        Raises:
            CannotConnect: no port can be bound.
            DiscoveryError: the announcement failed.
        """
        server = await self._listen()
        server.add_handler(f"{address.component}.{address.endpoint}", handler)
        self._has_room[address] = has_room
        record = InstanceRecord(
            *address,
            instance_id=self.instance_id,
            transports={**server.transports, **self._event_transports},
            card=card,
            metadata=dict(metadata or {}),
        )
        if announce:
            await self.announce(record)
        return record

    async def announce(self, record: InstanceRecord) -> None:
        """Publish or update `record`."""
        claiming = self._claiming_server()
        if claiming is not None:
            record = claiming.offer(record)
        await self.discovery.register(record)
        self.health.require("endpoints", lambda: None if self._records else "withdrawn")
        self._records = [known for known in self._records if known.address != record.address] + [record]
        if claiming is not None:
            await claiming.join(record, self._has_room.get(record.address, lambda: True))

    async def announce_publisher(self, address: EndpointAddress) -> None:
        """Let others know that this process publishes events, although it serves no request at `address`.

        Raises:
            DiscoveryError: the announcement failed.
        """
        await self.announce(
            InstanceRecord(*address, instance_id=self.instance_id, transports=dict(self._event_transports))
        )

    async def withdraw(self) -> None:
        """Take this process out of discovery: no new requests are routed to it."""
        claiming = self._claiming_server()
        if claiming is not None:
            await claiming.leave()
        records, self._records = self._records, []
        for record in records:
            try:
                await self.discovery.unregister(record)
            except DynamoError as error:
                logger.warning("cannot withdraw %s: %s", record.address, error.message)

    async def drain(self, grace_seconds: float) -> bool:
        """Withdraw, refuse new streams and wait for the open ones; whether all ended in time."""
        await self.withdraw()
        server = self._plane_server
        if server is None:
            return True
        server.stop_accepting()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_seconds
        while server.open_streams and loop.time() < deadline:
            await asyncio.sleep(0.02)
        return server.open_streams == 0

    def client(self, address: EndpointAddress) -> EndpointClient:
        """Requests to `address`, by iterator."""
        return EndpointClient(address, self.request_plane, self.instances)

    async def close(self) -> None:
        """Withdraw and close everything. Idempotent."""
        self.stopping.set()
        await self.withdraw()
        await self.instances.close()
        await self.request_plane.close()
        if self.event_plane is not None:
            await self.event_plane.close()
        await self.discovery.close()
        if self.system_server is not None:
            await self.system_server.close()
        await asyncio.to_thread(self.tracing.close)

    async def _start_events(self) -> None:
        plane = self.event_plane
        if plane is None:
            return
        address = await plane.start(self.instance_id)
        if address:
            self._event_transports = {self.settings.event_plane: address}

        def follow(kind: Literal["put", "delete"], record: InstanceRecord) -> None:
            (plane.add_peer if kind == "put" else plane.remove_peer)(record)

        self.instances.listen(follow)

    def _claiming_server(self) -> ClaimingServer | None:
        server: object = self._plane_server  # as a union with None, mypy sees no class that is both
        return server if isinstance(server, ClaimingServer) else None

    async def _listen(self) -> PlaneServer:
        if self._plane_server is None:
            self._plane_server = await self.request_plane.serve(self.instance_id)
        return self._plane_server


@contextlib.contextmanager
def config_errors_end_the_process() -> Iterator[None]:
    """Around what reads a command line: an error is printed without a traceback, and the exit status is EXIT_CONFIG."""
    try:
        yield
    except DynamoError as error:
        # What is missing may be there under a wrong name.
        for line in (*misspelt_variables(os.environ), f"Error: {error}"):
            print(line, file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CONFIG)


def run_process(
    settings: RuntimeSettings, body: Callable[[DistributedRuntime], Awaitable[None]], service: str = "dynamo"
) -> None:
    """Run one process: logging, event loop, signals; exits with a status that a scheduler understands.

    `service` is its name in traces.

    SIGTERM and SIGINT set ``runtime.stopping``; a second one ends the process at once.
    """
    configure_logging(settings.log_level, settings.log_format)
    for sentence in misspelt_variables(os.environ):
        logger.warning("%s", sentence)
    try:
        _run_loop(_main(settings, body, service))
    except DynamoError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CONFIG if isinstance(error, (ConfigError, PluginError)) else 1)


async def _main(settings: RuntimeSettings, body: Callable[[DistributedRuntime], Awaitable[None]], service: str) -> None:
    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(settings, service)

    def stop() -> None:
        if runtime.stopping.is_set():
            os._exit(1)
        runtime.stopping.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(signum, stop)
    async with runtime:
        await body(runtime)


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _event_options(settings: RuntimeSettings) -> EventPlaneOptions:
    return EventPlaneOptions(
        namespace=settings.namespace,
        host="127.0.0.1" if settings.tcp_host == "unix" else settings.tcp_host,
        secret=plane_secret(settings),
        insecure=settings.insecure_planes,
        state_directory=settings.state_directory() / "planes",
        broker=settings.broker_options(),
        durable=settings.event_plane_durable,
    )


def _plane_options(settings: RuntimeSettings) -> PlaneOptions:
    return PlaneOptions(
        host=settings.tcp_host,
        port=settings.tcp_port,
        secret=plane_secret(settings),
        insecure=settings.insecure_planes,
        state_directory=settings.state_directory() / "planes",
        namespace=settings.namespace,
        broker=settings.broker_options(),
        tls=settings.plane_tls(),
    )


def _fallback_plane(settings: RuntimeSettings) -> str:
    """The fallback in force: none where a loopback address would lead peers on other machines astray."""
    if is_local(settings.tcp_host) and not all(is_local(host_of(server)) for server in settings.nats_servers):
        return ""
    return settings.request_plane_fallback


def plane_secret(settings: RuntimeSettings) -> bytes:
    """The secret that this deployment's processes share; empty when there is none.

    Raises:
        ConfigError: its file cannot be read, or is empty.
    """
    if not settings.plane_secret_file:
        return settings.plane_secret.encode()
    hint = "check --plane-secret-file or DYN_PLANE_SECRET_FILE"
    try:
        secret = Path(settings.plane_secret_file).read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"cannot read the plane secret from {settings.plane_secret_file}: {error.strerror}",
            param="plane_secret_file",
            hint=hint,
        ) from error
    if not secret:
        raise ConfigError(f"{settings.plane_secret_file} holds no secret", param="plane_secret_file", hint=hint)
    return secret
