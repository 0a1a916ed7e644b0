"""Mode `kv` over the table of candidates: affinity against load, booking, overrides, added scorers, explanations."""

from __future__ import annotations

import types
from collections import Counter

import numpy as np
import pytest

from dynamo.errors import ConfigError, Disconnected, NoInstances, PluginNotFound
from dynamo.hookspecs import hookimpl
from dynamo.plugins import builtin, load_plugins, plugins
from dynamo.plugins.loading import PluginSource
from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.hashing import sequence_hashes
from dynamo.protocols.kv_events import HashesStored, KvEventBatch
from dynamo.protocols.llm import pack_token_ids
from dynamo.protocols.load import EngineLoad, WorkerLoad
from dynamo.protocols.model_card import EngineCapabilities, ModelDeploymentCard
from dynamo.protocols.routing import PromptHashes, RouteRequest, RouterOverrides
from dynamo.router.candidates import CandidateTable
from dynamo.router.explain import DecisionLog
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings

SIZE = 16
STORY = list(range(1000, 1000 + 10 * SIZE))


def instance(number, events=False, **card):
    capabilities = EngineCapabilities(kv_events=events)
    return InstanceRecord(
        "ns",
        "backend",
        "generate",
        number,
        card=ModelDeploymentCard("m", block_size_tokens=SIZE, capabilities=capabilities, **card),
    )


def request(tokens=STORY, name="r", **fields):
    packed = pack_token_ids(tokens)
    return RouteRequest(name, "m", prompt_tokens=len(tokens), prompt=PromptHashes(packed, fields.get("lora")), **fields)


def make(workers=4, loaded=None, decisions=None, events=False, **settings):
    settings = RouterSettings(**{"router_mode": "kv", **settings})
    policy = policy_for_mode(settings.router_mode, loaded or plugins(), settings)
    table = CandidateTable(policy, settings, decisions=decisions)
    for number in range(1, workers + 1):
        table.put(instance(number, events))
    return table


def stored(number, tokens, sequence=0, rank=0):
    hashes = sequence_hashes(np.asarray(tokens, np.uint32), SIZE).astype("<u8").tobytes()
    return KvEventBatch(number, rank, 1, sequence, SIZE, [HashesStored(hashes)], "m")


def test_a_conversation_stays_where_it_began():
    table = make()
    first = table.route(request(), 0.0)
    first.end()
    for turn in range(1, 6):
        route = table.route(request(STORY + list(range(turn * SIZE))), float(turn))
        assert route.worker == first.worker
        route.end()


def test_events_say_who_holds_what():
    table = make(events=True)
    table.take_events(stored(3, STORY))
    assert table.route(request(), 0.0).worker == WorkerKey(InstanceId(3))


def test_ranks_are_told_apart():
    table = make(0)
    table.put(instance(1, events=True, dp_size=4))
    table.take_events(stored(1, STORY, rank=2))
    assert table.route(request(), 0.0).worker == (1, 2)


def test_load_beats_affinity_in_the_end():
    """All requests share one prefix; no worker is left idle while another has all of them."""
    table = make()
    routes = [table.route(request([*STORY, *range(5 * SIZE + n, 30 * SIZE + n)]), 0.0) for n in range(32)]
    counts = Counter(route.worker for route in routes)
    assert len(counts) == 4
    assert max(counts.values()) <= 12


def test_the_end_of_requests_gives_the_worker_back():
    table = make(2)
    other = [2000 + n for n in range(10 * SIZE)]
    busy = table.route(request(), 0.0)
    assert table.route(request(other), 0.0).worker != busy.worker
    table = make(2)
    busy = table.route(request(), 0.0)
    busy.answered()
    busy.end()
    busy.end()
    facts = table.select(request(), 0.0).facts
    assert (facts.active_prefill_tokens, facts.active_decode_blocks, facts.active_requests) == (0, 0, 0)


def test_other_routers_load_is_seen_through_the_workers():
    table = make(2)
    table.take_load(WorkerLoad(1, "m", [EngineLoad(active_prefill_tokens=10_000, active_decode_blocks=50)]), 0.0)
    assert {table.select(request(), 0.0).key.instance_id for _ in range(20)} == {2}


def test_a_failed_worker_is_left_out_and_keeps_its_books():
    table = make(2)
    route = table.route(request(), 0.0)
    route.failed(Disconnected("gone"), 0.0)
    route.end()
    again = table.route(request(excluded=frozenset({route.worker.instance_id})), 0.0)
    assert again.worker != route.worker


def test_a_worker_that_dies_takes_its_bookings_and_its_blocks():
    table = make(2)
    route = table.route(request(), 0.0)
    table.remove(route.worker.instance_id)
    route.answered()
    route.end()
    table.put(instance(route.worker.instance_id))
    facts = table.select(request(), 0.0).facts
    assert facts.overlap_blocks == 0


def test_a_slot_that_is_used_again_inherits_nothing():
    table = make(1, events=True)
    table.take_events(stored(1, STORY))
    table.remove(1)
    table.put(instance(2, events=True))
    assert table.select(request(), 0.0).facts.overlap_blocks == 0


def test_another_lora_shares_nothing():
    table = make(0)
    table.put(instance(1, loras=["a"]))
    table.route(request(), 0.0)
    assert table.select(request(lora="a"), 0.0).facts.overlap_blocks == 0
    assert table.select(request(), 0.0).facts.overlap_blocks == 10


def test_what_was_routed_is_forgotten_in_time():
    table = make(1, router_ttl_seconds=50.0)
    table.route(request(), 0.0)
    assert table.select(request(), 49.0).facts.overlap_blocks == 10
    assert table.select(request(), 51.0).facts.overlap_blocks == 0


def test_a_worker_is_not_believed_to_hold_more_than_it_can():
    table = make(0)
    table.put(instance(1, total_kv_blocks=4))
    table.route(request(), 0.0)
    assert table.select(request(), 0.0).facts.overlap_blocks == 4


def test_workers_with_other_block_sizes_are_compared_in_blocks_of_their_own():
    table = make(1)
    record = instance(2)
    record.card.block_size_tokens = SIZE * 2
    table.put(record)
    routes = [table.route(request(), 0.0), table.route(request(), 0.0)]
    for route in routes:
        route.end()
    assert {route.worker.instance_id for route in routes} <= {1, 2}
    assert table.select(request(), 0.0).facts.overlap_blocks in (5, 10)


def test_short_and_unknown_prompts_are_routed_by_load():
    table = make(2)
    busy = table.route(request(list(range(5000))), 0.0)
    assert table.route(request([1, 2]), 0.0).worker != busy.worker
    table.route(RouteRequest("r", "m"), 0.0).end()


def test_a_request_may_override_the_parameters():
    table = make(2, events=True)
    table.take_events(stored(1, STORY))
    table.take_load(WorkerLoad(1, "m", [EngineLoad(active_prefill_tokens=5 * SIZE)]), 0.0)
    assert table.select(request(), 0.0).key.instance_id == 1
    indifferent = RouterOverrides(overlap_score_credit=0.0)
    assert table.select(request(overrides=indifferent), 0.0).key.instance_id == 2
    warm = RouterOverrides(temperature=5.0)
    assert {table.select(request(overrides=warm), 0.0).key.instance_id for _ in range(100)} == {1, 2}


def test_a_temperature_spreads_requests():
    table = make(4, events=True, router_temperature=2.0)
    table.take_events(stored(1, STORY))
    counts = Counter(table.select(request(), 0.0).key.instance_id for _ in range(2000))
    assert len(counts) == 4
    assert counts[1] > max(counts[n] for n in (2, 3, 4))


class Zone:
    """A scorer of somebody else."""

    consumes = ("record",)

    def score(self, asked, candidates):
        return [1.0 if candidate.record.instance_id == 2 else 0.0 for candidate in candidates]


class NotThree:
    """A filter of somebody else."""

    def filter(self, asked, candidates):
        return [candidate for candidate in candidates if candidate.key.instance_id != 3]


@pytest.fixture
def acme():
    @hookimpl
    def dynamo_register_routers(filters, scorers):
        scorers.register("zone", Zone)
        filters.register("not-three", NotThree)

    module = types.ModuleType("acme.plugin")
    module.dynamo_register_routers = dynamo_register_routers
    return load_plugins(
        [
            PluginSource("builtin", "dynamo-core", "1", "/", lambda: builtin),
            PluginSource("main", "acme", "1", "/", lambda: module),
        ]
    )


@pytest.mark.parametrize(("weight", "winner"), [(9, 3), (11, 2)])
def test_an_added_scorer_weighs_in_blocks(acme, weight, winner):
    table = make(3, acme, events=True, router_scorers=[f"zone={weight}"])
    table.take_events(stored(3, STORY))
    assert table.select(request(), 0.0).key.instance_id == winner


def test_an_added_filter_filters(acme):
    table = make(3, acme, events=True, router_filters=["not-three"])
    table.take_events(stored(3, STORY))
    assert table.select(request(), 0.0).key.instance_id != 3


@pytest.mark.parametrize("text", ["active-requests", "active-requests=", "active-requests=high"])
def test_a_scorer_without_weight_is_refused(text):
    with pytest.raises(ConfigError, match="has no weight") as caught:
        make(router_scorers=[text])
    assert "NAME=BLOCKS" in caught.value.hint


@pytest.mark.parametrize("settings", [{"router_scorers": ["nobody=1"]}, {"router_filters": ["nobody"]}])
def test_parts_that_are_not_installed_are_named(settings):
    with pytest.raises(PluginNotFound, match="nobody"):
        make(**settings)


def test_power_of_two_takes_the_less_busy_of_two():
    table = make(8, router_mode="power-of-two")
    routes = [table.route(request(), 0.0) for _ in range(80)]
    counts = Counter(route.worker for route in routes)
    assert max(counts.values()) - min(counts.values()) <= 8
    assert make(1, router_mode="power-of-two").route(request(), 0.0).worker == (1, 0)


def test_without_workers_nobody_is_chosen():
    with pytest.raises(NoInstances):
        make(0).route(request(), 0.0)


def test_simple_modes_keep_no_books():
    table = make(2, router_mode="round-robin")
    route = table.route(request(), 0.0)
    route.answered()
    route.end()
    assert table.select(request(), 0.0).facts.block_size == 1
    assert table.caught_up()


def test_decisions_are_kept_with_every_candidate():
    log = DecisionLog(2)
    table = make(3, decisions=log, events=True, router_mode="kv-upstream")
    table.take_events(stored(2, STORY))
    for name in ("a", "b", "c-1"):
        table.route(request(name=name), 0.0)
    assert [decision.request_id for decision in log.last(9)] == ["c-1", "b"]
    assert log.find("a") == []
    (decision,) = log.find("b")
    assert (decision.chosen, decision.mode, decision.prompt_tokens) == ((2, 0), "kv-upstream", 160)
    page = decision.to_json()
    assert [candidate["overlap_blocks"] for candidate in page["candidates"]] == [10, 0, 0]
    assert page["candidates"][0]["chosen"]
    # 10 blocks of prefill saved; the first request still holds the same blocks, which count once.
    assert page["margin_blocks"] == pytest.approx(10.0)
    assert log.find("c") == [log.last(1)[0]]


def test_a_lone_candidate_has_no_margin():
    log = DecisionLog(1)
    make(1, decisions=log).route(request(), 0.0)
    assert log.last(1)[0].to_json()["margin_blocks"] is None
