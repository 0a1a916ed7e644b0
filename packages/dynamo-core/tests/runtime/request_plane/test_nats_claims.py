"""Claims over a real NATS server: who answers, who does not, and what an ask costs when nobody does."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
import nats
import pytest

from dynamo.protocols.broker import BrokerOptions
from dynamo.protocols.claims import ClaimingPlane, ClaimingServer, CountsClaims
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.planes import PlaneOptions
from dynamo.runtime.request_plane import create_request_plane
from dynamo.runtime.request_plane.nats_claims import GROUP_TRANSPORT, group_subject
from dynamo.runtime.request_plane.nats_transport import CLAIM, Envelope

TIMEOUT = 20.0
#: A claim that is waited for so long would fail the test: what ends sooner was not ended by the clock.
NEVER = 3600.0


def always() -> bool:
    return True


class Group:
    """A client and the instances of one endpoint, each with a plane of its own."""

    def __init__(self, url: str, **options) -> None:
        broker = BrokerOptions(servers=(url,))
        self.options = PlaneOptions(
            **{"namespace": uuid.uuid4().hex, "broker": broker, "secret": b"s", "claim_seconds": NEVER, **options}
        )
        self.asking = create_request_plane("nats", self.options)
        self.planes = [self.asking]
        self.servers = []
        self.records: list[InstanceRecord] = []

    async def connect(self) -> Group:
        """The asking side connects when it first has something to do."""
        assert await self.asking._link.wait_connected(TIMEOUT)
        return self

    async def add(self, *, ranks: int = 1, has_room=always, model: str = "m", secret: bytes = b"s"):
        plane = create_request_plane("nats", msgspec.structs.replace(self.options, secret=secret))
        self.planes.append(plane)
        number = len(self.servers) + 1
        server = await plane.serve(number)
        assert isinstance(server, ClaimingServer)
        card = ModelDeploymentCard(model, dp_size=ranks)
        plain = InstanceRecord("ns", "worker", "generate", number, dict(server.transports), card)
        record = server.offer(plain)
        await server.join(record, has_room)
        self.servers.append(server)
        self.records.append(record)
        return server

    async def empty(self) -> None:
        """All leave, and NATS knows it."""
        for server, plane in zip(self.servers, self.planes[1:], strict=True):
            await server.leave()
            await plane._link._client.flush()

    def begin(self):
        assert isinstance(self.asking, ClaimingPlane)
        return self.asking.claim(self.records)

    async def ask(self):
        """The worker that claims, or None."""
        asked = self.begin()
        assert asked is not None
        claim = await asyncio.wait_for(asked, TIMEOUT)
        assert claim is None or claim.by == "nats"
        return None if claim is None else tuple(claim.worker)

    def asked(self) -> dict[str, int]:
        """How the asks ended, of what happened."""
        assert isinstance(self.asking, CountsClaims)
        return happened(self.asking)

    async def close(self) -> None:
        for plane in self.planes:
            await plane.close()


def happened(counted: CountsClaims) -> dict[str, int]:
    return {outcome: number for outcome, number in counted.claim_outcomes.items() if number}


@pytest.fixture
async def make_group():
    groups = []

    async def make(server, **options) -> Group:
        groups.append(Group(server.url, **options))
        return await groups[-1].connect()

    yield make
    for group in groups:
        await group.close()


@pytest.fixture
async def group(make_group, nats_server):
    return await make_group(nats_server)


@pytest.fixture
async def outsider(nats_server):
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


async def until_claimed_by_all(group: Group, wanted: set) -> None:
    seen = set()
    while seen != wanted:
        seen.add(await group.ask())
        assert seen <= wanted


async def test_every_rank_of_every_instance_claims(group):
    await group.add(ranks=3)
    await group.add()
    await asyncio.wait_for(until_claimed_by_all(group, {(1, 0), (1, 1), (1, 2), (2, 0)}), TIMEOUT)


async def test_many_asks_at_once_get_an_answer_each_and_leave_nothing_behind(group):
    await group.add()
    await group.add()
    claims = await asyncio.wait_for(asyncio.gather(*(group.begin() for _ in range(200))), TIMEOUT)
    counts = [sum(claim.worker.instance_id == number for claim in claims) for number in (1, 2)]
    assert sum(counts) == 200
    assert min(counts) > 40
    assert group.asked() == {"claimed": 200}
    assert [happened(server) for server in group.servers] == [{"claimed": count} for count in counts]
    assert not group.asking._inbox_channels.transports


async def test_who_leaves_claims_nothing_more_and_may_come_back(group):
    leaving = await group.add()
    await group.add()
    await leaving.leave()
    # NATS may hear of it a moment later: what still comes to who has left is declined.
    assert {await group.ask() for _ in range(30)} - {None} == {(2, 0)}
    await leaving.leave()
    await leaving.join(group.records[0], always)
    await asyncio.wait_for(until_claimed_by_all(group, {(1, 0), (2, 0)}), TIMEOUT)


async def test_an_empty_group_is_known_at_once(group):
    await group.add()
    await group.empty()
    assert await group.ask() is None
    assert group.asked() == {"nobody": 1}


async def test_who_is_full_does_not_claim_until_it_has_room(group):
    rooms = [False]
    server = await group.add(has_room=lambda: rooms[0])
    assert await group.ask() is None
    rooms[0] = True
    assert await group.ask() == (1, 0)
    assert group.asked() == happened(server) == {"declined": 1, "claimed": 1}


async def test_who_drains_does_not_claim(group):
    server = await group.add()
    assert await group.ask() == (1, 0)
    server.stop_accepting()
    assert await group.ask() is None


async def test_joining_twice_is_being_a_member_once(group):
    server = await group.add()
    await server.join(group.records[0], always)
    await server.leave()
    assert await group.ask() is None


async def test_models_of_one_endpoint_are_groups_of_their_own(group):
    await group.add(model="m")
    await group.add(model="m " * 3)
    assert group.begin() is None
    del group.records[1]
    assert {await group.ask() for _ in range(20)} == {(1, 0)}


async def test_instances_of_protocol_1_0_are_not_left_out(group):
    """They announce no group, so NATS would never pick one of them: then nobody is asked."""
    await group.add()
    transports = {"nats": "dyn.ns.instance.00000000000002"}
    group.records.append(InstanceRecord("ns", "worker", "generate", 2, transports, ModelDeploymentCard("m")))
    assert group.begin() is None


@pytest.mark.parametrize("subject", ["", "dyn.>", "dyn.*", "a b", "a\r\nPUB x 0\r\n", "a..b"])
async def test_a_group_that_is_no_subject_is_not_asked(group, subject):
    group.records.append(InstanceRecord("ns", "worker", "generate", 2, {GROUP_TRANSPORT: subject}))
    assert group.begin() is None


async def test_an_endpoint_without_a_model_has_no_group(group):
    server = await group.add()
    plain = InstanceRecord("ns", "worker", "other", 1, dict(server.transports))
    assert server.offer(plain) == plain
    await server.join(plain, always)


async def test_nobody_is_asked_before_there_is_a_connection(nats_server):
    group = Group(nats_server.url)
    try:
        await group.add()
        assert group.begin() is None
        await group.connect()  # it has been begun
        assert await group.ask() == (1, 0)
    finally:
        await group.close()


async def hang(outsider, record) -> asyncio.Event:
    """Be a member that never answers; set when it is asked."""
    asked = asyncio.Event()

    async def take(message):
        asked.set()

    await be_member(outsider, record, take)
    return asked


async def say(outsider, record, secret: bytes, answer: bytes) -> None:
    """Be a member that knows `secret` and says always the same."""

    async def take(message):
        channel = message.subject.rpartition(".")[2]
        await outsider.publish(message.reply, Envelope(secret, channel, asking=False).seal(CLAIM, 0, answer))

    await be_member(outsider, record, take)


async def be_member(outsider, record, take) -> None:
    await outsider.subscribe(f"{group_subject(record)}.*", queue="claims", cb=take)
    for _ in range(2):  # the first ping may overtake the subscription
        await outsider.flush()


async def test_a_member_that_hangs_costs_one_wait_and_then_nobody_is_asked_for_a_while(
    make_group, nats_server, outsider
):
    group = await make_group(nats_server, claim_seconds=0.05)
    await group.add()
    await group.empty()
    asked = await hang(outsider, group.records[0])
    assert await group.ask() is None
    await asyncio.wait_for(asked.wait(), TIMEOUT)
    assert group.begin() is None
    assert not group.asking._inbox_channels.transports
    assert group.asked() == {"silent": 1}


async def test_an_instance_with_another_secret_neither_claims_nor_is_believed(make_group, nats_server):
    group = await make_group(nats_server, claim_seconds=0.05)
    server = await group.add(secret=b"another")
    assert await group.ask() is None
    assert (group.asked(), happened(server)) == ({"silent": 1}, {"refused": 1})


async def test_nobody_can_claim_without_the_secret(make_group, nats_server, outsider):
    """Whoever may subscribe to the group is picked, but what it says is nothing."""
    group = await make_group(nats_server, claim_seconds=0.2)
    await group.add()
    await group.empty()
    said = []

    async def lie(message):
        said.append(message)
        answer = msgspec.msgpack.encode({"instance_id": 666})
        channel = message.subject.rpartition(".")[2]
        for secret in (b"", b"guess"):
            await outsider.publish(message.reply, Envelope(secret, channel, asking=False).seal(CLAIM, 0, answer))
        # Its own words cannot be turned against the client either.
        await outsider.publish(message.reply, message.data)
        await outsider.publish(message.reply, b"")
        await outsider.publish(message.reply, b"\xff" * 40)

    await be_member(outsider, group.records[0], lie)
    assert await group.ask() is None
    assert len(said) == 1


async def test_an_answer_cannot_be_used_again(make_group, nats_server, outsider):
    """Each ask has keys of its own."""
    group = await make_group(nats_server, claim_seconds=0.2)
    await group.add()
    seen = asyncio.Queue()

    async def take(message):
        seen.put_nowait(message)

    await outsider.subscribe(f"{group.asking._inbox}.*", cb=take)
    for _ in range(2):
        await outsider.flush()
    assert await group.ask() == (1, 0)
    recorded = await asyncio.wait_for(seen.get(), TIMEOUT)
    await group.empty()
    hung = await hang(outsider, group.records[0])
    asked = group.begin()
    await asyncio.wait_for(hung.wait(), TIMEOUT)
    (channel,) = group.asking._inbox_channels.transports
    await outsider.publish(f"{group.asking._inbox}.{channel}", recorded.data)
    assert await asyncio.wait_for(asked, TIMEOUT) is None


@pytest.mark.parametrize(
    "answer", [b"", b"\xc0", b"\x93", msgspec.msgpack.encode({"instance_id": "one"}), msgspec.msgpack.encode({"x": 1})]
)
async def test_an_answer_that_cannot_be_read_is_none(make_group, nats_server, outsider, answer):
    group = await make_group(nats_server, secret=b"")
    await group.add(secret=b"")
    await group.empty()
    await say(outsider, group.records[0], b"", answer)
    assert await group.ask() is None


async def test_fields_of_a_later_version_in_an_answer_are_ignored(make_group, nats_server, outsider):
    group = await make_group(nats_server)
    await group.add()
    await group.empty()
    answer = msgspec.msgpack.encode({"instance_id": 5, "dp_rank": 2, "later": [1]})
    await say(outsider, group.records[0], b"s", answer)
    assert await group.ask() == (5, 2)


async def test_garbage_to_the_group_is_not_answered_and_spares_it(group, outsider):
    await group.add()
    subject, inbox = group_subject(group.records[0]), outsider.new_inbox()
    answers = await outsider.subscribe(inbox)
    for garbage in (b"", b"\x04", bytes(9), b"\xff" * 40, Envelope(b"", "c", asking=True).seal(CLAIM, 0)):
        await outsider.publish(f"{subject}.c", garbage, reply=inbox)
        await outsider.publish(f"{subject}.c", garbage)
    await outsider.publish(f"{subject}.c", Envelope(b"s", "c", asking=True).seal(CLAIM, 0), reply="not.a.>")
    await outsider.publish(f"{subject}.c", Envelope(b"s", "c", asking=True).seal(CLAIM, 0), reply=inbox)
    only = await answers.next_msg(TIMEOUT)
    assert Envelope(b"s", "c", asking=True).open(only.data) is not None
    assert await group.ask() == (1, 0)
    assert answers.pending_msgs == 0


async def test_nats_going_away_ends_the_asks_and_the_group_is_there_when_it_is_back(make_group, own_nats_server):
    group = await make_group(own_nats_server, keepalive_seconds=0.1)
    stays = await group.add()
    await group.add()
    await group.empty()
    outsider = await nats.connect(own_nats_server.url, allow_reconnect=False)
    hung = await hang(outsider, group.records[0])
    asked = group.begin()
    await asyncio.wait_for(hung.wait(), TIMEOUT)
    await stays.join(group.records[0], always)
    own_nats_server.kill()
    assert await asyncio.wait_for(asked, TIMEOUT) is None
    assert group.asked() == {"lost": 1}
    await outsider.close()
    await asyncio.to_thread(own_nats_server.start)
    for plane in group.planes:
        assert await plane._link.wait_connected(TIMEOUT)
    assert {await group.ask() for _ in range(20)} == {(1, 0)}
