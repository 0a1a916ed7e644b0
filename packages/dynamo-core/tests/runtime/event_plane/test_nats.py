"""The NATS event plane against a real server: delivery, secrets, outages, and what JetStream keeps."""

from __future__ import annotations

import asyncio
import logging
import uuid

import nats
import pytest

from dynamo.errors import ConfigError
from dynamo.protocols.broker import BrokerOptions
from dynamo.protocols.event_plane import EventPlaneOptions
from dynamo.runtime.event_plane import create_event_plane
from dynamo.testing.servers import NatsServer

TIMEOUT = 20.0


class Peer:
    """A plane with what it has received."""

    def __init__(self, options):
        self.plane = create_event_plane("nats", options)
        self.received = []
        self.arrival = asyncio.Event()

    async def listen(self, subject, handler=None):
        await self.plane.subscribe(subject, handler or self.take)

    def take(self, payload):
        self.received.append(payload)
        self.arrival.set()

    async def has(self, payload):
        """Wait until it has received `payload`."""

        async def look():
            while payload not in self.received:
                self.arrival.clear()
                await self.arrival.wait()

        await asyncio.wait_for(look(), TIMEOUT)

    async def hears(self, publisher, payload):
        """Publish until the message arrives: after an outage the subscription takes a moment."""

        async def repeat():
            while payload not in self.received:
                publisher.plane.publish("x", payload)
                await asyncio.sleep(0.02)

        await asyncio.wait_for(repeat(), TIMEOUT)


@pytest.fixture
async def peers():
    made = []
    namespace = uuid.uuid4().hex

    async def make(server, **options):
        broker = BrokerOptions(servers=(server.url,))
        peer = Peer(EventPlaneOptions(**{"namespace": namespace, "secret": b"s", "broker": broker, **options}))
        made.append(peer)
        assert await peer.plane.start(len(made)) == ""
        return peer

    yield make
    for peer in made:
        await peer.plane.close()


def logged(caplog, text):
    return [record for record in caplog.records if text in record.getMessage()]


async def test_messages_arrive_in_order_by_subject_and_namespace(nats_server, peers):
    publisher, listener = await peers(nats_server), await peers(nats_server)
    stranger = await peers(nats_server, namespace=uuid.uuid4().hex)
    for peer in (publisher, listener, stranger):
        await peer.listen("load")
    for number in range(500):
        publisher.plane.publish("load", b"%d" % number)
        publisher.plane.publish("load2", b"wrong")
    await listener.has(b"499")
    assert listener.received == [b"%d" % number for number in range(500)]
    await publisher.has(b"499")
    assert stranger.received == []


async def test_two_handlers_of_one_subject_both_hear_and_one_may_fail(nats_server, peers, caplog):
    publisher, listener = await peers(nats_server), await peers(nats_server)

    def broken(payload):
        raise KeyError(payload)

    await listener.listen("x", broken)
    await listener.listen("x")
    publisher.plane.publish("x", b"1")
    publisher.plane.publish("x", b"2")
    await listener.has(b"2")
    assert listener.received == [b"1", b"2"]
    assert len(logged(caplog, "event handler failed")) == 2


@pytest.mark.parametrize(("publishing", "listening"), [(b"a", b"b"), (b"a", b""), (b"", b"b")])
async def test_without_the_same_secret_nothing_is_heard(nats_server, peers, caplog, publishing, listening):
    publisher = await peers(nats_server, secret=publishing)
    control = await peers(nats_server, secret=listening)
    listener = await peers(nats_server, secret=listening)
    await listener.listen("x")
    for _ in range(20):
        publisher.plane.publish("x", b"secret")
    await publisher.plane.close()
    control.plane.publish("x", b"control")
    await listener.has(b"control")
    assert listener.received == [b"control"]
    assert listener.plane.foreign_messages == 20
    assert len(logged(caplog, "another plane secret")) == 1


async def test_garbage_and_moved_messages_are_dropped(nats_server, peers):
    """A message is authentic on its own subject only."""
    publisher, listener = await peers(nats_server), await peers(nats_server)
    await listener.listen("x")
    client = await nats.connect(nats_server.url)
    prefix = publisher.plane._subject("")
    eavesdropped = await client.subscribe(prefix + "y")
    for _ in range(2):  # the first ping may overtake the subscription
        await client.flush()
    publisher.plane.publish("y", b"for y")
    recorded = (await eavesdropped.next_msg(TIMEOUT)).data
    for garbage in (b"", b"\0", b"\0plain", b"\1", b"\1short", b"\xff" * 100, recorded):
        await client.publish(prefix + "x", garbage)
    await client.flush()
    await client.close()
    publisher.plane.publish("x", b"real")
    await listener.has(b"real")
    assert listener.received == [b"real"]
    assert listener.plane.foreign_messages == 7


async def test_a_message_above_the_limit_is_dropped_and_counted(nats_server, peers, caplog):
    publisher, listener = await peers(nats_server), await peers(nats_server)
    await listener.listen("x")
    publisher.plane.publish("x", bytes(2 << 20))
    publisher.plane.publish("x", bytes(1000))
    await listener.has(bytes(1000))
    assert listener.received == [bytes(1000)]
    assert publisher.plane.oversized_messages == 1
    assert logged(caplog, "dropping events above")


async def test_an_outage_pauses_events_and_loses_only_what_the_queue_cannot_hold(own_nats_server, peers, caplog):
    server = own_nats_server
    publisher = await peers(server, queue_messages=10)
    listener = await peers(server)
    await listener.listen("x")
    await listener.hears(publisher, b"before")
    with caplog.at_level(logging.WARNING):
        server.kill()
        for number in range(100):
            publisher.plane.publish("x", b"%d" % number)
            await asyncio.sleep(0)
        while not publisher.plane._link.away:
            await asyncio.sleep(0.01)
        for number in range(100, 200):
            publisher.plane.publish("x", b"%d" % number)
        server.start()
        await listener.hears(publisher, b"after")
    assert len(logged(caplog, "NATS was lost")) == 2
    assert len(logged(caplog, "dropping the oldest")) == 1
    assert not {b"%d" % number for number in range(100, 190)} & set(listener.received)


async def test_closing_does_not_wait_for_a_hung_server_that_takes_no_more(own_nats_server, peers):
    publisher = await peers(own_nats_server)
    own_nats_server.pause()
    for _ in range(200):
        publisher.plane.publish("x", bytes(500_000))
    await asyncio.sleep(0)
    await asyncio.wait_for(publisher.plane.close(), TIMEOUT)
    assert not publisher.plane._link.connected
    own_nats_server.resume()


async def test_a_server_that_is_away_at_the_start_is_waited_for(own_nats_server, peers, caplog):
    server = own_nats_server
    server.stop()
    publisher, listener = await peers(server), await peers(server)
    await listener.listen("x")
    publisher.plane.publish("x", b"early")
    assert len(logged(caplog, "cannot be reached")) == 2
    server.start()
    await listener.hears(publisher, b"now")


async def test_a_durable_plane_replays_to_those_who_come_later_also_after_a_restart(own_nats_server, peers):
    server = own_nats_server
    publisher, early = await peers(server, durable=True), await peers(server, durable=True)
    await early.listen("x")
    for number in range(200):
        publisher.plane.publish("x", b"%d" % number)
    await early.has(b"199")
    server.kill()
    server.start()
    late = await peers(server, durable=True)
    await late.listen("x")
    await late.has(b"199")
    assert late.received == [b"%d" % number for number in range(200)]
    await early.hears(publisher, b"end")
    await late.has(b"end")
    assert early.received[:200] == late.received[:200]
    assert set(early.received[200:]) == {b"end"}


async def test_a_durable_plane_goes_on_when_the_server_has_lost_its_store(own_nats_server, peers):
    server = own_nats_server
    publisher, listener = await peers(server, durable=True), await peers(server, durable=True)
    await listener.listen("x")
    for number in range(50):
        publisher.plane.publish("x", b"%d" % number)
    await listener.has(b"49")
    server.kill()
    server.wipe()
    server.start()
    await listener.hears(publisher, b"new")
    assert listener.received.count(b"0") == 1


async def test_the_durable_stream_is_bounded(nats_server, peers):
    peer = await peers(nats_server, durable=True, namespace="bounds")
    client = await nats.connect(nats_server.url)
    config = (await client.jetstream().stream_info("dynamo-bounds-events")).config
    await client.close()
    assert (config.max_age, config.max_bytes, config.discard) == (600, 256 << 20, "old")
    assert config.subjects == [peer.plane._subject(">")]


async def test_without_jetstream_a_durable_plane_is_heard_live(nats_server, peers, tmp_path, caplog):
    configuration = tmp_path / "account.conf"
    configuration.write_text("accounts: {without: {users: [{user: u, password: p}]}}\n")
    with NatsServer(arguments=[f"--config={configuration}"]) as server:
        login = BrokerOptions(servers=(server.url,), user="u", password="p")
        publisher = await peers(server, durable=True, broker=login)
        listener = await peers(server, durable=True, broker=login)
        await listener.listen("x")
        await listener.hears(publisher, b"live")
        assert len(logged(caplog, "only heard live")) == 2
        await publisher.plane.close()
        await listener.plane.close()


async def test_a_remote_broker_needs_a_secret():
    plane = create_event_plane("nats", EventPlaneOptions(broker=BrokerOptions(servers=("nats://10.0.0.1",))))
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1.*no plane secret") as caught:
        await plane.start(1)
    assert "--insecure-planes" in str(caught.value.hint)
    await plane.close()
