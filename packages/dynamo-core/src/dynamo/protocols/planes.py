"""The request plane: how a stream of responses gets from the instance that makes it to the process that asked.

The hot path is callbacks, not async iterators: a frame that carries one output for each of 64 streams costs 64 plain
calls in place of 64 queue operations and task switches. `dynamo.runtime.client` and `dynamo.runtime.server` have the
iterator forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from dynamo.errors import DynamoError
from dynamo.protocols.broker import BrokerOptions
from dynamo.protocols.context import RequestContext
from dynamo.protocols.discovery import InstanceRecord

__all__ = [
    "ConnectingPlane",
    "Handler",
    "PlaneOptions",
    "PlaneServer",
    "PlaneStream",
    "PlaneTls",
    "RequestPlane",
    "ResponseSink",
    "StreamWriter",
]


class PlaneTls(msgspec.Struct, frozen=True):
    """Files in PEM format for planes over TLS; without `certificate_file` and `ca_file` there is no TLS."""

    certificate_file: str = ""
    """Of this process as a server."""
    key_file: str = ""
    client_ca_file: str = ""
    """Set: peers must show a certificate that this authority signed."""
    ca_file: str = ""
    """Authority of the servers that this process connects to."""
    client_certificate_file: str = ""
    """Of this process as a client, for servers that ask for one."""
    client_key_file: str = ""
    server_name: str = ""
    """Name that servers' certificates must carry; empty: any that `ca_file` signed."""


class PlaneOptions(msgspec.Struct, frozen=True):
    """What a request plane is made of; `dynamo.runtime.settings` has the flags."""

    host: str = "127.0.0.1"
    """Address to listen on and to announce; ``unix`` listens on a socket file in `state_directory`."""
    port: int = 0
    secret: bytes = b""
    """Shared secret of the deployment; empty only where no other machine can connect."""
    insecure: bool = False
    """Allow an empty secret on an address that other machines can reach."""
    state_directory: Path = Path()
    max_frame_bytes: int = 32 << 20
    max_streams: int = 16384
    """Open streams per connection."""
    keepalive_seconds: float = 2.0
    """Between pings; a peer that is silent for three of them counts as lost."""
    connect_timeout_seconds: float = 5.0
    claim_seconds: float = 0.05
    """How long a request waits for a worker that claims it, where the plane asks (`dynamo.protocols.claims`)."""
    namespace: str = "dynamo"
    """Logical deployment; planes with a broker keep deployments apart by it."""
    broker: BrokerOptions = BrokerOptions()
    """For planes that have a broker."""
    tls: PlaneTls = PlaneTls()


class StreamWriter(Protocol):
    """The serving side of one stream."""

    @property
    def writable(self) -> bool:
        """Whether the asking side takes more; a writer that ignores it is bounded by the peer, which resets it."""
        ...

    def send(self, item: bytes) -> None:
        """Queue one msgpack-encoded item; leaves with everything else of this event-loop pass in one frame.

        One that is longer than a frame may be fails the stream, with an error that nobody retries.
        """
        ...

    def end(self) -> None:
        """The stream is complete. Nothing may follow; later calls are ignored."""
        ...

    def fail(self, error: DynamoError) -> None:
        """The stream failed. Nothing may follow; later calls are ignored."""
        ...

    def on_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when `writable` becomes true again, or the stream has ended."""
        ...


#: Serves one request: payload (msgpack bytes), context, writer. Returns at once; answers through the writer.
Handler: TypeAlias = Callable[[bytes, RequestContext, StreamWriter], None]


class ResponseSink(Protocol):
    """Receives one stream. Exactly one of `on_end` and `on_error` is called, last."""

    def on_items(self, items: list[bytes]) -> None:
        """New items of the stream, each msgpack-encoded, in order. Must not block.

        Should not raise: that ends the stream, the instance is told to stop, and `on_error` is called.
        """
        ...

    def on_end(self) -> None:
        """The handler ended the stream."""
        ...

    def on_error(self, error: DynamoError) -> None:
        """The handler failed, or the connection was lost."""
        ...


class PlaneStream(Protocol):
    """The asking side of one open stream."""

    def cancel(self) -> None:
        """Tell the instance to stop; the sink still gets its `on_end` or `on_error`. Idempotent."""
        ...

    def pause(self) -> None:
        """Stop granting credit: the instance is held back once its window is used up."""
        ...

    def resume(self) -> None:
        """Grant credit again."""
        ...


class PlaneServer(Protocol):
    """The serving side in one process."""

    @property
    def transports(self) -> Mapping[str, str]:
        """Its part of `InstanceRecord.transports`: plane name to address."""
        ...

    @property
    def open_streams(self) -> int:
        """Streams that have not ended."""
        ...

    def add_handler(self, endpoint: str, handler: Handler) -> None:
        """Serve `endpoint` (``component.endpoint``) with `handler`."""
        ...

    def stop_accepting(self) -> None:
        """Refuse new streams with Draining; open ones go on."""
        ...

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        ...


class RequestPlane(Protocol):
    """A request plane of this process, both sides."""

    async def serve(self, instance_id: int) -> PlaneServer:
        """Start listening. A broker that is away is waited for in the background.

        Raises:
            ConfigError: the address is open to other machines and there is no secret, or the broker refuses us.
            CannotConnect: the address cannot be bound.
        """
        ...

    def reaches(self, instance: InstanceRecord) -> bool:
        """Whether a request can be tried: `instance` announces this plane, and its broker is not known to be away."""
        ...

    def send(
        self,
        instance: InstanceRecord,
        payload: bytes,
        sink: ResponseSink,
        context: RequestContext,
    ) -> PlaneStream:
        """Open a stream to `instance`, connecting when needed. Failures arrive at the sink.

        Cancelling `context` cancels the stream.
        """
        ...

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        ...


@runtime_checkable
class ConnectingPlane(Protocol):
    """A `RequestPlane` that needs a broker, of which a process should know at its start. Optional."""

    async def connect(self) -> None:
        """Try the broker, before anything is sent or served. One that is away is waited for in the background.

        Raises:
            ConfigError: the broker refuses us.
        """
        ...
