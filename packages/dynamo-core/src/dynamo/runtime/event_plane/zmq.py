"""The default event plane: every publisher binds a ZeroMQ PUB socket, every subscriber connects to all of them.

With a secret, both ends use CURVE with keys derived from it: a subscriber can only connect if it knows the publishers'
public key, which never travels, and a publisher can only answer if it has their secret key. Traffic is encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging

import zmq
from zmq.utils import z85

from dynamo.errors import CannotConnect, ConfigError
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.event_plane import EventHandler, EventPlaneOptions
from dynamo.runtime.hosts import announced_host, is_local

__all__ = ["TRANSPORT", "ZmqEventPlane"]

logger = logging.getLogger(__name__)

#: Key of this plane's address in `InstanceRecord.transports`.
TRANSPORT = "zmq"
#: Messages that are handed over before the event loop has its turn again.
_AT_ONCE = 64


class ZmqEventPlane:
    """Implements `dynamo.protocols.event_plane.EventPlane`."""

    def __init__(self, options: EventPlaneOptions) -> None:
        self._options = options
        self._context = zmq.Context()
        self._publisher: zmq.Socket[bytes] | None = None
        self._subscriber: zmq.Socket[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where the subscriber is read."""
        self._handlers: dict[bytes, list[EventHandler]] = {}
        self._peers: dict[str, set[tuple[int, str]]] = {}
        self._keys = _keys(options.secret) if options.secret else None

    async def start(self, instance_id: int) -> str:  # noqa: ARG002 - peers are told apart by their address
        """Bind the PUB socket; see `EventPlane.start`."""
        options = self._options
        if not options.secret and not options.insecure and not is_local(options.host):
            raise ConfigError(
                f"other machines can reach {options.host}, and there is no plane secret",
                param="plane_secret",
                hint="set DYN_PLANE_SECRET or --plane-secret-file; --insecure-planes goes without",
            )
        publisher = self._context.socket(zmq.PUB)
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.setsockopt(zmq.SNDHWM, options.queue_messages)
        if self._keys is not None:
            publisher.curve_server = True
            publisher.curve_secretkey, publisher.curve_publickey = self._keys
        try:
            publisher.bind(f"tcp://{options.host}:*")
        except zmq.ZMQError as error:
            publisher.close()
            raise CannotConnect(f"cannot bind the event plane to {options.host}: {error}") from error
        self._publisher = publisher
        host, _, port = publisher.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://").rpartition(":")
        return f"tcp://{announced_host(host)}:{port}"

    def publish(self, subject: str, payload: bytes) -> None:
        """Send; a PUB socket drops for a peer whose queue is full."""
        if self._publisher is not None:
            self._publisher.send_multipart([self._topic(subject), payload], zmq.NOBLOCK)

    async def subscribe(self, subject: str, handler: EventHandler) -> None:
        """Listen to all peers, known and to come."""
        topic = self._topic(subject)
        self._handlers.setdefault(topic, []).append(handler)
        socket = self._subscriber or self._open_subscriber()
        socket.setsockopt(zmq.SUBSCRIBE, topic)
        self._look_again()

    def add_peer(self, record: InstanceRecord) -> None:
        """Connect to a publisher, once whatever number of endpoints it serves."""
        address = record.transports.get(TRANSPORT)
        if not address:
            return
        owners = self._peers.setdefault(address, set())
        if not owners and self._subscriber is not None:
            self._connect(self._subscriber, address)
        owners.add((record.instance_id, record.endpoint))

    def remove_peer(self, record: InstanceRecord) -> None:
        """Disconnect from a publisher when its last endpoint is gone."""
        address = record.transports.get(TRANSPORT, "")
        owners = self._peers.get(address)
        if owners is None:
            return
        owners.discard((record.instance_id, record.endpoint))
        if not owners:
            del self._peers[address]
            if self._subscriber is not None:
                with contextlib.suppress(zmq.ZMQError):
                    self._subscriber.disconnect(address)
                self._look_again()

    async def close(self) -> None:
        """Close all sockets."""
        if self._subscriber is not None and self._loop is not None:
            self._loop.remove_reader(self._subscriber.fileno())
        for socket in (self._publisher, self._subscriber):
            if socket is not None:
                socket.close(linger=0)
        self._publisher = self._subscriber = self._loop = None
        self._context.term()

    def _topic(self, subject: str) -> bytes:
        # The zero byte ends the topic: ZeroMQ subscribes by prefix, and `load` must not receive `load2`.
        return f"{self._options.namespace}.{subject}\0".encode()

    def _open_subscriber(self) -> zmq.Socket[bytes]:
        options = self._options
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, options.queue_messages)
        socket.setsockopt(zmq.MAXMSGSIZE, options.max_message_bytes)
        # A dead peer is only noticed by its silence: heartbeats let ZeroMQ drop it and connect again.
        socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        if self._keys is not None:
            secret, public = self._keys
            socket.curve_secretkey, socket.curve_publickey, socket.curve_serverkey = secret, public, public
        self._subscriber = socket
        for address in self._peers:
            self._connect(socket, address)
        # Not by `zmq.asyncio`, whose future costs more for each message than the message does.
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(socket.fileno(), self._read)
        return socket

    def _connect(self, socket: zmq.Socket[bytes], address: str) -> None:
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            logger.warning("event plane address %r of a peer is not usable: %s", address, error)
        self._look_again()

    def _read(self) -> None:
        """Hand over what has come. The descriptor tells only of what is new, so nothing may be left."""
        socket = self._subscriber
        if socket is None:
            return
        for _ in range(_AT_ONCE):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) == 2:
                self._hand_over(*frames)
        self._look_again()

    def _hand_over(self, topic: bytes, payload: bytes) -> None:
        for handler in self._handlers.get(topic, ()):
            try:
                handler(payload)
            except Exception:
                logger.exception("event handler failed")

    def _look_again(self) -> None:
        # Every call of a socket may take the news of its descriptor, or that of a message, away with it.
        if self._loop is not None:
            self._loop.call_soon(self._read)


def _keys(secret: bytes) -> tuple[bytes, bytes]:
    """The deployment's CURVE key pair (secret, public) in Z85."""
    secret_key = z85.encode(hashlib.sha256(b"dynamo event plane\0" + secret).digest())
    return secret_key, zmq.curve_public(secret_key)
