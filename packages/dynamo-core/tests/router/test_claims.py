"""A worker's claim is an offer: the router takes it only from a worker that its filters have left."""

from __future__ import annotations

import asyncio

import pytest

from dynamo.errors import CannotConnect, NoInstances
from dynamo.plugins import plugins
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.claims import Claim, ClaimingPlane
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import PreprocessedRequest, pack_token_ids
from dynamo.protocols.load import EngineLoad, WorkerLoad
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.explain import DecisionLog
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings
from dynamo.router.standalone.relay import Relay
from dynamo.router.thresholds import BusyThresholds
from dynamo.runtime.context import Context

NOW = 0.0
REQUEST = RouteRequest("r", "m")


class Broker:
    """Implements `RequestPlane` as far as it is needed here, and `ClaimingPlane`."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.sent: list[int] = []
        self.answer: asyncio.Future[Claim | None] | None = None

    async def serve(self, instance_id):
        raise AssertionError("nothing is served here")

    def reaches(self, instance):
        return True

    def send(self, instance, payload, sink, context):
        self.sent.append(instance.instance_id)

    def claim(self, instances):
        self.asked.append([instance.instance_id for instance in instances])
        return self.answer

    async def close(self):
        """Nothing is open."""


def claim_of(instance_id: int, dp_rank: int = 0) -> Claim:
    return Claim(WorkerKey(InstanceId(instance_id), dp_rank), "broker")


@pytest.fixture
def broker() -> Broker:
    made = Broker()
    assert isinstance(made, ClaimingPlane)
    return made


@pytest.fixture
def decisions() -> DecisionLog:
    return DecisionLog(10)


@pytest.fixture
def make_table(broker, decisions):
    def make(mode="random", instances=(1, 2, 3), **settings) -> CandidateTable:
        settings = RouterSettings(router_mode=mode, **settings)
        table = CandidateTable(
            policy_for_mode(mode, plugins(), settings), settings, plane=broker, decisions=decisions, model="m"
        )
        for number in instances:
            card = ModelDeploymentCard("m", loras=["adapter"] if number == 1 else [], dp_size=1 + (number == 3))
            table.put(InstanceRecord("ns", "backend", "generate", number, card=card))
        return table

    return make


def chosen(table: CandidateTable, claim: Claim, **fields) -> set[WorkerKey]:
    """Who gets a request that was claimed, over many tries."""
    request = RouteRequest("r", "m", claim=claim, **fields)
    return {table.select(request, NOW).key for _ in range(60)}


@pytest.mark.parametrize("claim", [claim_of(2), claim_of(3, 1)])
def test_who_claims_gets_the_request(make_table, claim):
    assert chosen(make_table(), claim) == {claim.worker}


@pytest.mark.parametrize("claim", [claim_of(9), claim_of(2, 1)])
def test_a_claim_of_nobody_leaves_the_choice_to_the_router(make_table, claim):
    assert len(chosen(make_table(), claim)) == 4


def test_who_failed_this_request_is_not_used_whatever_it_claims(make_table):
    assert chosen(make_table(), claim_of(2), excluded=frozenset({2})) == {(1, 0), (3, 0), (3, 1)}


def test_who_lacks_the_adapter_is_not_used_whatever_it_claims(make_table):
    assert chosen(make_table(), claim_of(2), lora="adapter") == {(1, 0)}


def test_who_keeps_failing_is_not_used_whatever_it_claims(make_table):
    table = make_table()
    table.route(RouteRequest("r", "m", claim=claim_of(2)), NOW).failed(CannotConnect("away"), NOW)
    assert chosen(table, claim_of(2)) == {(1, 0), (3, 0), (3, 1)}


def test_who_is_busy_is_not_used_whatever_it_claims(make_table):
    table = make_table()
    table.set_thresholds(BusyThresholds(None, 10))
    table.take_load(WorkerLoad(2, "m", [EngineLoad(active_prefill_tokens=100)]), NOW)
    assert chosen(table, claim_of(2)) == {(1, 0), (3, 0), (3, 1)}


def test_those_that_the_filters_leave_are_asked(make_table, broker):
    table = make_table()
    assert table.claim(REQUEST, NOW) is None
    table.claim(RouteRequest("r", "m", excluded=frozenset({2})), NOW)
    assert broker.asked == [[1, 2, 3, 3], [1, 3, 3]]


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("random", {"router_seed": 7}),
        ("random", {"router_queue_threshold": 1.0}),
        ("round-robin", {}),
        ("least-loaded", {}),
        ("power-of-two", {}),
        ("kv", {}),
        ("direct", {}),
    ],
)
def test_nobody_is_asked_where_it_matters_who_is_chosen(make_table, broker, mode, settings):
    make_table(mode, **settings).claim(REQUEST, NOW)
    assert broker.asked == []


def test_a_seeded_choice_ignores_claims(make_table):
    assert len(chosen(make_table(router_seed=7), claim_of(2))) == 4


def test_nobody_is_asked_where_there_is_no_choice(make_table, broker):
    table = make_table(instances=(1, 2))
    table.claim(RouteRequest("r", "m", lora="adapter"), NOW)
    table.claim(RouteRequest("r", "m", pinned=WorkerKey(InstanceId(2))), NOW)
    make_table(instances=(1,)).claim(REQUEST, NOW)
    empty = make_table(instances=())
    assert empty.claim(REQUEST, NOW) is None
    with pytest.raises(NoInstances):
        empty.route(REQUEST, NOW)
    assert broker.asked == []


def test_a_decision_says_who_chose(make_table, decisions):
    table = make_table()
    for claim in (claim_of(2), claim_of(9), None):
        table.route(RouteRequest("r", "m", claim=claim), NOW).end()
    assert [decision.to_json()["chosen_by"] for decision in decisions.find("r")] == ["broker", "router", "router"]


class Writer:
    """Remembers how the stream ended."""

    def __init__(self) -> None:
        self.ended = False

    def end(self):
        self.ended = True


async def begin(table: CandidateTable, broker: Broker) -> tuple[Context, Writer]:
    broker.answer = asyncio.get_running_loop().create_future()
    context, writer = Context("r"), Writer()
    Relay(PreprocessedRequest("r", "m", pack_token_ids([1])), table, broker, context, writer).start()
    assert broker.sent == []
    return context, writer


async def claimed(broker: Broker, claim: Claim | None) -> None:
    assert broker.answer is not None
    broker.answer.set_result(claim)
    await asyncio.sleep(0)


async def test_a_relayed_request_goes_where_it_was_claimed(make_table, broker):
    await begin(make_table(), broker)
    await claimed(broker, claim_of(2))
    assert broker.sent == [2]


async def test_a_relayed_request_that_nobody_claims_goes_somewhere(make_table, broker):
    await begin(make_table(), broker)
    await claimed(broker, None)
    assert len(broker.sent) == 1


async def test_a_relayed_request_that_is_cancelled_meanwhile_goes_nowhere(make_table, broker):
    table = make_table()
    context, writer = await begin(table, broker)
    context.cancel()
    await claimed(broker, claim_of(2))
    assert (broker.sent, writer.ended) == ([], True)
    assert [candidate.active_requests for candidate in table.candidates()] == [0] * 4
