"""Frontends agree on what workers have to do: over loss, duplication, reordering, crashes and silence."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.plugins import plugins
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import pack_token_ids
from dynamo.protocols.load import EngineLoad, WorkerLoad
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.routing import PromptHashes, RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode
from dynamo.router.replica_sync import BEAT_SECONDS, SILENCE_SECONDS, OpenRequest, ReplicaMessage, ReplicaSync
from dynamo.router.settings import RouterSettings

SIZE = 16
WORKERS = 3


class Router:
    """One frontend's router: a table of candidates and its side of the sync."""

    def __init__(self, number, mode="kv"):
        self.number = number
        settings = RouterSettings(router_mode=mode, router_use_kv_events=False)
        self.outcomes = []
        self.sync = ReplicaSync(number, self._book, count=self.outcomes.append)
        self.table = CandidateTable(policy_for_mode(mode, plugins(), settings), settings, replicas=self.sync)
        for worker in range(1, WORKERS + 1):
            card = ModelDeploymentCard("m", block_size_tokens=SIZE)
            self.table.put(InstanceRecord("ns", "backend", "generate", worker, card=card))

    def _book(self, worker, prefill_tokens, blocks, now):
        return self.table.book_remote(worker, prefill_tokens, blocks, now)

    def route(self, tokens, now=0.0):
        prompt = PromptHashes(pack_token_ids(tokens))
        return self.table.route(RouteRequest("r", "m", prompt_tokens=len(tokens), prompt=prompt), now)

    def loads(self):
        """(prefill tokens, decode blocks, requests) of each worker."""
        return [
            (
                (candidate.kv.active.prefill_tokens, candidate.kv.active.decode_blocks)
                if candidate.kv is not None
                else (0, 0)
            )
            + (candidate.active_requests,)
            for candidate in self.table._ordered
        ]


def meet(*routers):
    for router in routers:
        for other in routers:
            router.sync.add_peer(other.number)


def tell(message, *routers, now=0.0):
    assert message is not None
    for router in routers:
        router.sync.take(message, now)


def beat(*routers, now=0.0):
    for _ in range(2):  # ask, answer
        for message in [router.sync.beat(now) for router in routers]:
            if message is not None:
                tell(message, *routers, now=now)


@pytest.fixture
def pair():
    routers = Router(1), Router(2)
    meet(*routers)
    beat(*routers)
    return routers


def test_a_request_counts_at_both_until_its_end(pair):
    one, other = pair
    route = one.route(range(100))
    tell(one.sync.news(), one, other)
    assert sorted(other.loads()) == [(0, 0, 0), (0, 0, 0), (100, 6, 1)]
    assert other.loads() == one.loads()
    route.answered()
    tell(one.sync.news(), other)
    assert other.loads() == one.loads()
    assert max(other.loads()) == (0, 6, 1)
    route.end()
    tell(one.sync.news(), other)
    assert set(other.loads()) == {(0, 0, 0)}
    assert (one.sync.open_requests(), other.sync.remote_requests()) == (0, 0)


def test_two_routers_choose_different_workers(pair):
    one, other = pair
    first = one.route(range(1000))
    tell(one.sync.news(), other)
    assert other.route(range(5000, 6000)).worker != first.worker


def test_least_loaded_counts_the_others_requests_too():
    routers = Router(1, "least-loaded"), Router(2, "least-loaded")
    meet(*routers)
    beat(*routers)
    chosen = {routers[0].route(range(9)).worker for _ in range(2)}
    tell(routers[0].sync.news(), routers[1])
    assert routers[1].route(range(9)).worker not in chosen


def test_what_workers_report_is_not_counted_twice(pair):
    one, other = pair
    route = one.route(range(100))
    tell(one.sync.news(), other)
    report = WorkerLoad(route.worker.instance_id, "m", [EngineLoad(active_prefill_tokens=100, active_decode_blocks=6)])
    for router in pair:
        router.table.take_load(report, 0.0)
    assert max(other.loads()) == (100, 6, 1)
    assert max(one.loads()) == (100, 6, 1)


def test_nobody_is_talked_to_where_nobody_listens():
    changes = []
    alone = ReplicaSync(1, lambda *_: None, changed=lambda: changes.append(1))
    alone.free(alone.book(WorkerKey(InstanceId(1)), 5, 5))
    assert (alone.beat(0.0), alone.news(), changes) == (None, None, [])


def test_what_begins_and_ends_at_once_is_not_told(pair):
    one, _ = pair
    one.route(range(100)).end()
    assert one.sync.news() is None


def test_who_comes_later_is_told_what_is_open():
    one, late = Router(1), Router(3)
    routes = [one.route(range(100 * n, 100 * n + 64)) for n in range(5)]
    routes[0].answered()
    meet(one, late)
    beat(one, late)
    assert late.loads() == one.loads()
    assert late.sync.remote_requests() == 5


@pytest.mark.parametrize("lost", range(3))
def test_a_lost_message_is_made_good_by_a_snapshot(pair, lost):
    one, other = pair
    route = one.route(range(100))
    messages = [one.sync.news()]
    route.answered()
    messages.append(one.sync.news())
    route.end()
    messages.append(one.sync.news())
    del messages[lost]
    for message in messages:
        tell(message, other)
    beat(one, other)
    beat(one, other)
    assert set(other.loads()) == {(0, 0, 0)}
    assert "gap" in other.outcomes


def test_a_silent_frontend_takes_its_requests_with_it(pair):
    one, other = pair
    one.route(range(100))
    tell(one.sync.news(), other)
    other.sync.beat(SILENCE_SECONDS)
    assert other.sync.remote_requests() == 1
    other.sync.beat(SILENCE_SECONDS + 0.1)
    assert (set(other.loads()), other.sync.replicas()) == ({(0, 0, 0)}, 0)


def test_a_frontend_that_discovery_drops_takes_its_requests_with_it_at_once(pair):
    one, other = pair
    one.route(range(100))
    tell(one.sync.news(), other)
    other.sync.drop_peer(1)
    assert set(other.loads()) == {(0, 0, 0)}
    other.sync.drop_peer(1)
    other.sync.drop_peer(99)


def test_a_worker_that_is_known_later_gets_its_requests(pair):
    one, other = pair
    record = other.table.records()[0]
    other.table.remove(record.instance_id)
    routes = [one.route(range(100 * n, 100 * n + 64)) for n in range(6)]
    tell(one.sync.news(), other)
    assert "unknown_worker" in other.outcomes
    other.table.put(record)
    beat(one, other)
    assert other.loads() == one.loads()
    for route in routes:
        route.end()
    tell(one.sync.news(), other)
    assert set(other.loads()) == {(0, 0, 0)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"router": 9, "sequence": 0, "booked": [[1, 1, 0, -5, 0]]},
        {"router": 9, "sequence": 0, "booked": [[1, 1, 0, 2**50, 0]]},
        {"router": 9, "sequence": -1},
        {"router": 9, "sequence": 0, "freed": [-1]},
        {"router": 9},
        [],
    ],
)
def test_impossible_messages_are_refused_before_they_are_read(wrong):
    with pytest.raises(msgspec.MsgspecError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(wrong), type=ReplicaMessage)


def test_nonsense_changes_nothing(pair):
    _, other = pair
    messages = [
        ReplicaMessage(9, 0, computed=[1, 2], freed=[3]),
        ReplicaMessage(9, 1, booked=[OpenRequest(1, 77, 0, 5, 5)]),
        ReplicaMessage(9, 2, booked=[OpenRequest(1, 1, 5, 5, 5)]),
        ReplicaMessage(other.number, 10**9, booked=[OpenRequest(1, 1, 0, 5, 5)]),
    ]
    for message in messages:
        tell(message, other)
    assert set(other.loads()) == {(0, 0, 0)}


def test_other_frontends_cannot_grow_without_bound(pair):
    _, other = pair
    for number in range(1000, 2000):
        other.sync.take(ReplicaMessage(number, 0), 0.0)
    assert other.sync.replicas() == 256
    assert other.outcomes.count("overflow") == 1000 - 255


class Network:
    """Delivers messages late, twice, out of order or not at all."""

    def __init__(self, seed, loss, doubles):
        self.rng = random.Random(seed)
        self.loss, self.doubles = loss, doubles
        self.waiting = []

    def send(self, message, to):
        for router in to:
            copies = 1 + (self.rng.random() < self.doubles) - (self.rng.random() < self.loss)
            self.waiting += [(router, message)] * copies

    def deliver(self, now, *, everything=False):
        number = len(self.waiting) if everything else self.rng.randint(0, len(self.waiting))
        if not everything:
            self.rng.shuffle(self.waiting)
        now_due, self.waiting = self.waiting[:number], self.waiting[number:]
        for router, message in now_due:
            router.sync.take(message, now)


def live(seed, lives, loss=0.1, doubles=0.1):
    """Random request lives at three routers that crash now and then; returns those that are left and their routes."""
    rng, network = random.Random(seed), Network(seed, loss, doubles)
    routers, next_number = [Router(1), Router(2), Router(3)], 4
    routes = {router.number: [] for router in routers}
    meet(*routers)
    now = last_beat = 0.0
    for _ in range(lives):
        now += rng.random() * 0.01
        router = rng.choice(routers)
        start = rng.randrange(50) * SIZE
        routes[router.number].append(router.route(range(start, start + rng.randrange(200)), now))
        for route in rng.sample(routes[router.number], min(4, len(routes[router.number]))):
            rng.choice((route.answered, route.end, route.end, route.end))()
        routes[router.number] = [route for route in routes[router.number] if route._open]
        if rng.random() < 0.3 and (message := router.sync.news()) is not None:
            network.send(message, routers)
        if now - last_beat > BEAT_SECONDS:
            last_beat = now
            for each in routers:
                if (message := each.sync.beat(now)) is not None:
                    network.send(message, routers)
        network.deliver(now)
        for _, prefill, blocks, requests in [(each, *load) for each in routers for load in each.loads()]:
            assert min(prefill, blocks, requests) >= 0
        if rng.random() < 0.0005:
            dead = routers.pop(rng.randrange(3))
            noticed = rng.random() < 0.5
            for each in routers:
                if noticed:
                    each.sync.drop_peer(dead.number)
            routers.append(Router(next_number))
            routes[next_number] = []
            next_number += 1
            meet(*routers)
    return routers, routes, network, now


def converge(routers, network, now):
    """The network behaves; a few beats later, all is known."""
    network.loss = network.doubles = 0.0
    for _ in range(8):
        now += BEAT_SECONDS
        for router in routers:
            network.send(router.sync.beat(now), routers)
        network.deliver(now, everything=True)


def check(routers, routes, network, now):
    converge(routers, network, now)
    everything = [sorted(router.sync._open.values(), key=msgspec.structs.astuple) for router in routers]
    for router in routers:
        others = [other for other in routers if other is not router]
        assert router.sync.remote_requests() == sum(other.sync.open_requests() for other in others)
    # Prompt tokens and requests are the same for all; blocks that requests of two routers share count at both.
    loads = [[(prefill, requests) for prefill, _, requests in router.loads()] for router in routers]
    assert loads[0] == loads[1] == loads[2]
    assert sum(requests for _, requests in loads[0]) == sum(map(len, everything))
    for router in routers:
        for route in routes[router.number]:
            route.end()
    converge(routers, network, now + 100)
    for router in routers:
        assert set(router.loads()) == {(0, 0, 0)}


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 0.3]))
def test_replicas_converge_whatever_the_network_does(seed, loss, doubles):
    check(*live(seed, 60, loss, doubles))


def test_nothing_leaks_over_many_lives_with_crashes():
    check(*live(7, 3000))


@pytest.mark.slow
def test_nothing_leaks_over_a_hundred_thousand_lives_with_crashes():
    check(*live(11, 100_000))
