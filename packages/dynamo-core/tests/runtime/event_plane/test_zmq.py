"""The ZeroMQ event plane between real sockets: delivery by subject, secrets, peers that come and go."""

from __future__ import annotations

import asyncio

import pytest
import zmq

from dynamo.errors import ConfigError
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.event_plane import EventPlaneOptions
from dynamo.runtime.event_plane import create_event_plane

TIMEOUT = 10.0


class Peer:
    """A plane with what it has received."""

    def __init__(self, instance_id, **options):
        self.plane = create_event_plane("zmq", EventPlaneOptions(**options))
        self.instance_id = instance_id
        self.received = []

    async def start(self):
        address = await self.plane.start(self.instance_id)
        self.record = InstanceRecord("ns", "worker", "generate", self.instance_id, {"zmq": address})
        return self

    async def listen(self, subject):
        await self.plane.subscribe(subject, self.received.append)

    async def hears(self, publisher, subject, payload):
        """Publish until the message arrives: a fresh connection has no subscription for a moment."""

        async def repeat():
            while payload not in self.received:
                publisher.plane.publish(subject, payload)
                await asyncio.sleep(0.01)

        await asyncio.wait_for(repeat(), TIMEOUT)


@pytest.fixture
async def peers():
    made = []

    async def make(**options):
        peer = await Peer(len(made) + 1, **{"secret": b"s", **options}).start()
        made.append(peer)
        return peer

    yield make
    for peer in made:
        await peer.plane.close()


async def test_messages_arrive_in_order_by_subject_and_namespace(peers):
    publisher, listener, stranger = await peers(), await peers(), await peers(namespace="other")
    for peer in (listener, stranger):
        await peer.listen("load")
        peer.plane.add_peer(publisher.record)
    await listener.hears(publisher, "load", b"ready")
    listener.received.clear()
    for number in range(500):
        publisher.plane.publish("load", b"%d" % number)
        publisher.plane.publish("load2", b"wrong")
    publisher.plane.publish("load", b"end")
    await listener.hears(publisher, "load", b"end")
    numbers = [payload for payload in listener.received if payload not in (b"ready", b"end")]
    assert numbers == [b"%d" % number for number in range(500)]
    assert stranger.received == []


async def test_peers_may_be_known_before_or_after_the_subscription(peers):
    early, late, listener = await peers(), await peers(), await peers()
    listener.plane.add_peer(early.record)
    await listener.listen("x")
    listener.plane.add_peer(late.record)
    await listener.hears(early, "x", b"early")
    await listener.hears(late, "x", b"late")


async def test_a_removed_peer_is_not_heard(peers):
    publisher, other, listener = await peers(), await peers(), await peers()
    await listener.listen("x")
    listener.plane.add_peer(publisher.record)
    listener.plane.add_peer(other.record)
    await listener.hears(publisher, "x", b"here")
    listener.plane.remove_peer(publisher.record)
    listener.received.clear()
    publisher.plane.publish("x", b"gone")
    await listener.hears(other, "x", b"other")
    assert b"gone" not in listener.received


async def test_a_peer_with_two_endpoints_is_connected_once(peers):
    publisher, listener = await peers(), await peers()
    await listener.listen("x")
    second = InstanceRecord("ns", "worker", "other", publisher.instance_id, publisher.record.transports)
    listener.plane.add_peer(publisher.record)
    listener.plane.add_peer(second)
    await listener.hears(publisher, "x", b"ready")
    listener.received.clear()
    publisher.plane.publish("x", b"one")
    await listener.hears(publisher, "x", b"end")
    assert listener.received.count(b"one") == 1
    listener.plane.remove_peer(second)
    await listener.hears(publisher, "x", b"still")


@pytest.mark.parametrize(("publishing", "listening"), [(b"a", b"b"), (b"a", b""), (b"", b"b")])
async def test_without_the_same_secret_nothing_is_heard(peers, publishing, listening):
    publisher, listener = await peers(secret=publishing), await peers(secret=listening)
    control = await peers(secret=listening)
    await listener.listen("x")
    listener.plane.add_peer(publisher.record)
    listener.plane.add_peer(control.record)
    await listener.hears(control, "x", b"control")
    for _ in range(20):
        publisher.plane.publish("x", b"secret")
        await listener.hears(control, "x", b"control")
    assert b"secret" not in listener.received


async def test_a_handler_that_raises_does_not_stop_the_others(peers, caplog):
    publisher, listener = await peers(), await peers()

    def broken(payload):
        raise KeyError(payload)

    await listener.plane.subscribe("x", broken)
    await listener.listen("x")
    listener.plane.add_peer(publisher.record)
    await listener.hears(publisher, "x", b"1")
    await listener.hears(publisher, "x", b"2")


async def test_a_malformed_message_or_address_is_ignored(peers, caplog):
    publisher, listener = await peers(secret=b""), await peers(secret=b"")
    await listener.listen("x")
    listener.plane.add_peer(InstanceRecord("ns", "w", "e", 9, {"zmq": "nonsense"}))
    listener.plane.add_peer(publisher.record)
    await listener.hears(publisher, "x", b"ready")
    publisher.plane._publisher.send_multipart([b"dynamo.x\0", b"a", b"b"], zmq.NOBLOCK)
    await listener.hears(publisher, "x", b"after")
    assert "not usable" in caplog.text


async def test_an_open_address_needs_a_secret():
    plane = create_event_plane("zmq", EventPlaneOptions(host="0.0.0.0"))
    with pytest.raises(ConfigError, match="no plane secret"):
        await plane.start(1)
    await plane.close()
