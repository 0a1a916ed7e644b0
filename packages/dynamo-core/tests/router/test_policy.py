"""Router modes over the table of candidates."""

from __future__ import annotations

import types
from collections import Counter

import pytest
from pydantic import ValidationError

from dynamo.errors import ConfigError, NoInstances, PluginError
from dynamo.hookspecs import hookimpl
from dynamo.plugins import load_plugins, plugins
from dynamo.plugins.loading import PluginSource
from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.routing import RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import RouterPolicy, policy_for_mode, router_modes
from dynamo.router.settings import RouterSettings

REQUEST = RouteRequest("r", "m")
NOW = 0.0


@pytest.fixture
def table(record):
    """Makes a table of instances 1..n under a mode."""

    def make(mode: str, instances: int = 3, dp_size: int = 1) -> CandidateTable:
        made = CandidateTable(policy_for_mode(mode, plugins()))
        for number in range(1, instances + 1):
            made.put(record(number, dp_size))
        return made

    return make


def picks(table: CandidateTable, times: int, request: RouteRequest = REQUEST) -> list[tuple[int, int]]:
    return [tuple(table.select(request, NOW).key) for _ in range(times)]


def test_round_robin_takes_everybody_in_turn_ranks_included(table):
    assert picks(table("round-robin"), 7) == [(1, 0), (2, 0), (3, 0), (1, 0), (2, 0), (3, 0), (1, 0)]
    assert picks(table("round-robin", 2, dp_size=2), 4) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_random_takes_everybody(table):
    counts = Counter(picks(table("random"), 3000))
    # 1000 expected each; 6 standard deviations of a binomial are 155.
    assert set(counts) == {(1, 0), (2, 0), (3, 0)}
    assert all(abs(count - 1000) < 155 for count in counts.values())


def test_least_loaded_fills_the_valleys(table):
    made = table("least-loaded")
    for _ in range(30):
        made.select(REQUEST, NOW).sent()
    busiest = made.select(REQUEST, NOW)
    busiest.sent()
    assert Counter(picks(made, 50))[tuple(busiest.key)] == 0


def test_least_loaded_breaks_ties_at_random_so_that_routers_do_not_herd(table):
    assert len(set(picks(table("least-loaded"), 200))) == 3


def test_direct_goes_where_the_caller_says_down_to_the_rank(table):
    pinned = RouteRequest("r", "m", pinned=WorkerKey(2, 1))
    assert set(picks(table("direct", 3, dp_size=2), 10, pinned)) == {(2, 1)}


def test_direct_without_a_choice_takes_turns(table):
    assert picks(table("direct"), 3) == [(1, 0), (2, 0), (3, 0)]


def test_direct_to_nobody_is_no_instances(table):
    with pytest.raises(NoInstances, match="no worker of 'm' can take this request") as caught:
        table("direct").select(RouteRequest("r", "m", pinned=WorkerKey(9)), NOW)
    assert caught.value.retry_after_seconds


@pytest.mark.parametrize("mode", ["round-robin", "random", "least-loaded", "direct"])
def test_workers_that_failed_the_request_are_left_out_with_all_their_ranks(table, mode):
    request = RouteRequest("r", "m", excluded=frozenset({1, 3}))
    assert {key[0] for key in picks(table(mode, 3, dp_size=2), 20, request)} == {2}


@pytest.mark.parametrize("mode", ["round-robin", "random", "least-loaded", "direct"])
def test_when_all_have_failed_all_are_tried_again(table, mode):
    request = RouteRequest("r", "m", excluded=frozenset({1, 2, 3}))
    assert {key[0] for key in picks(table(mode), 200, request)} == {1, 2, 3}


def test_a_pinned_worker_that_failed_is_still_the_callers_choice(table):
    request = RouteRequest("r", "m", pinned=WorkerKey(2), excluded=frozenset({2}))
    assert picks(table("direct"), 1, request) == [(2, 0)]


@pytest.mark.parametrize("mode", ["round-robin", "random", "least-loaded", "direct"])
def test_without_workers_nobody_is_chosen(table, mode):
    with pytest.raises(NoInstances):
        table(mode, instances=0).select(REQUEST, NOW)


def test_modes_are_the_pickers_and_the_recipes():
    assert set(router_modes(plugins())) >= {"direct", "least-loaded", "random", "round-robin"}
    assert "max-score" not in router_modes(plugins())


@pytest.mark.parametrize("mode", ["round_robin", "", "max-score"])
def test_an_unknown_mode_lists_those_there_are(mode):
    with pytest.raises(ConfigError, match=f"unknown router mode {mode!r}") as caught:
        policy_for_mode(mode, plugins())
    assert caught.value.hint == f"choose one of {', '.join(router_modes(plugins()))}"
    assert caught.value.param == "router_mode"


class Last:
    """A picker of somebody else."""

    def pick(self, request, candidates, scores):
        return candidates[-1]


def test_a_picker_of_a_third_party_is_a_mode(record):
    @hookimpl
    def dynamo_register_routers(pickers):
        pickers.register("last", Last)

    module = types.ModuleType("acme.plugin")
    module.dynamo_register_routers = dynamo_register_routers
    from dynamo.plugins import builtin

    loaded = load_plugins(
        [
            PluginSource("builtin", "dynamo-core", "1", "/", lambda: builtin),
            PluginSource("main", "acme", "1", "/", lambda: module),
        ]
    )
    assert "last" in router_modes(loaded)
    table = CandidateTable(policy_for_mode("last", loaded))
    for number in (5, 7, 6):
        table.put(record(number))
    assert picks(table, 2) == [(7, 0), (7, 0)]
    assert picks(table, 1, RouteRequest("r", "m", excluded=frozenset({7}))) == [(6, 0)]


def test_each_policy_has_its_own_turn(table):
    first, second = table("round-robin"), table("round-robin")
    assert picks(first, 2) == picks(second, 2) == [(1, 0), (2, 0)]


class Fixed:
    """A scorer that says what it is told."""

    consumes = ()

    def __init__(self, *scores: float) -> None:
        self._scores = scores

    def score(self, request, candidates):
        return self._scores


class Best:
    """A picker that remembers the sums."""

    def pick(self, request, candidates, scores):
        self.scores = scores
        return candidates[scores.index(max(scores))]


def test_scores_are_weighted_and_summed(record):
    best = Best()
    table = CandidateTable(RouterPolicy([], [(Fixed(1.0, 0.0, 0.5), 2.0), (Fixed(0.0, 1.0, 1.0), 3.0)], best))
    for number in (1, 2, 3):
        table.put(record(number))
    assert table.select(REQUEST, NOW).key == WorkerKey(3)
    assert best.scores == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("scores", "given"),
    [
        ((0.5, float("nan")), "a score of nan"),
        ((float("inf"), 0.0), "a score of inf"),
        ((1.0,), "1 scores for 2 workers"),
        ((1.0, 1.0, 1.0), "3 scores for 2 workers"),
    ],
)
def test_a_scorer_that_gives_no_scores_is_named(record, scores, given):
    best = Best()
    table = CandidateTable(RouterPolicy([], [(Fixed(1.0, 0.0), 1.0), (Fixed(*scores), 1.0)], best))
    for number in (1, 2):
        table.put(record(number))
    with pytest.raises(PluginError, match=rf"test_policy\.Fixed gave {given}\n") as caught:
        table.route(REQUEST, NOW)
    assert "--router-scorers" in caught.value.hint
    assert all(candidate.active_requests == 0 for candidate in table.candidates())


@pytest.mark.parametrize("weight", ["", "=", "=x", "=nan", "=inf", "=-inf"])
def test_a_scorer_needs_a_number_as_weight(weight):
    settings = RouterSettings(router_scorers=[f"active-requests{weight}"])
    with pytest.raises(ConfigError, match="has no weight") as caught:
        policy_for_mode("kv", plugins(), settings)
    assert "NAME=BLOCKS" in caught.value.hint


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["router_temperature", "router_kv_overlap_score_credit", "router_queue_threshold"])
def test_no_parameter_is_infinite(name, number):
    """Differences of infinite costs are no numbers, and no worker is the cheapest by them."""
    with pytest.raises(ValidationError):
        RouterSettings(**{name: number})
