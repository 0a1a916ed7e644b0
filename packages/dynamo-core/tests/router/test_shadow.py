"""Shadow policies count what they would have done, cost what they may, and never reach the request."""

from __future__ import annotations

import logging
import time

import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import ConfigError
from dynamo.plugins import plugins
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import pack_token_ids
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.routing import PromptHashes, RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.metrics import RouterMetrics
from dynamo.router.pickers import MaxScore
from dynamo.router.policy import RouterPolicy, policy_for_mode
from dynamo.router.settings import RouterSettings
from dynamo.router.shadow import PolicyTally, ShadowPolicy, shadow_policies

SIZE = 16


class Breaks:
    """A scorer with a bug."""

    consumes = ()

    def score(self, request, candidates):
        raise KeyError("no such thing")


def table(*shadows, mode="round-robin", workers=2, metrics=None, **settings):
    router = RouterSettings(router_mode=mode, router_use_kv_events=False, **settings)
    made = CandidateTable(
        policy_for_mode(mode, plugins(), router),
        router,
        shadows=[*shadow_policies(router, plugins()), *shadows],
        metrics=metrics,
    )
    for worker in range(workers):
        card = ModelDeploymentCard("m", block_size_tokens=SIZE)
        made.put(InstanceRecord("ns", "backend", "generate", worker + 1, card=card))
    return made


def request(number, blocks=4, name="r"):
    tokens = pack_token_ids([number] * blocks * SIZE)
    return RouteRequest(f"{name}{number}", "m", prompt_tokens=blocks * SIZE, prompt=PromptHashes(tokens))


def policies(made):
    return {policy["policy"]: policy for policy in made.report()["shadows"]["policies"]}


def test_the_shadow_agrees_with_itself():
    made = table(mode="kv", router_shadow_modes=["kv"])
    for number in range(20):
        made.route(request(number % 3), float(number))
    live, shadow = policies(made)["live"], policies(made)["kv"]
    assert live["decisions"] == shadow["decisions"] == 20
    assert live["agreement"] == 1.0
    assert shadow["agreement"] >= 0.5  # ties of idle workers are drawn
    assert shadow["hit_rate"] == pytest.approx(live["hit_rate"], abs=0.1)


def test_a_better_shadow_shows_a_better_hit_rate_and_does_not_act():
    made = table(router_shadow_modes=["kv", "least-loaded"])
    # Three prompts on two workers: round robin sends each to the other worker the second time.
    chosen = [made.route(request(number % 3), float(number)).worker.instance_id for number in range(24)]
    assert chosen == [1, 2] * 12
    found = policies(made)
    assert found["kv"]["hit_rate"] >= found["live"]["hit_rate"]
    assert found["kv"]["errors"] == 0
    assert found["kv"]["imbalance"] >= 1.0


def test_a_broken_shadow_is_counted_and_logged_once(caplog):
    registry = CollectorRegistry()
    broken = ShadowPolicy("broken", RouterPolicy([], [(Breaks(), 1.0)], MaxScore()))
    made = table(broken, metrics=RouterMetrics(registry).of("m"))
    with caplog.at_level(logging.ERROR):
        routes = [made.route(request(number), float(number)) for number in range(5)]
    assert len({route.worker for route in routes}) == 2
    assert [record.message for record in caplog.records].count(
        "shadow policy 'broken' failed; counted from now on, not logged"
    ) == 1
    assert policies(made)["broken"]["errors"] == 5
    labels = {"model": "m", "policy": "broken"}
    assert registry.get_sample_value("dynamo_router_shadow_errors_total", labels) == 5
    assert registry.get_sample_value("dynamo_router_policy_decisions_total", {**labels, "policy": "live"}) == 5


class Slow:
    """A scorer that takes longer than shadows may at once."""

    consumes = ()

    def score(self, request, candidates):
        until = time.perf_counter() + 0.06
        while time.perf_counter() < until:
            pass
        return [0.0] * len(candidates)


def test_beyond_its_share_of_time_it_is_not_asked():
    slow = ShadowPolicy("slow", RouterPolicy([], [(Slow(), 1.0)], MaxScore()))
    made = table(slow, router_shadow_cpu_share=0.05)
    for now in (0.0, 0.0, 0.1, 10.0, 10.1):
        made.route(request(1), now).end()
    report = made.report()["shadows"]
    assert (policies(made)["slow"]["decisions"], report["skipped"]) == (2, 3)
    assert report["cost_microseconds"] > 60_000
    made.shadows.unbind()
    made.route(request(1), 10.1)
    assert policies(made)["slow"]["decisions"] == 3


class OnlyFirst:
    """A filter that leaves one worker."""

    def filter(self, request, candidates):
        return candidates[:1]


def test_a_shadow_sees_who_the_live_filters_left_out():
    shadow = ShadowPolicy("least-loaded", policy_for_mode("least-loaded", plugins()))
    made = CandidateTable(RouterPolicy([OnlyFirst()], [], MaxScore()), RouterSettings(), shadows=[shadow])
    for worker in (1, 2):
        made.put(InstanceRecord("ns", "backend", "generate", worker))
    for now in range(5):
        assert made.route(request(now), float(now)).worker.instance_id == 1
    # After the first one the other worker has less to do.
    assert policies(made)["least-loaded"]["agreement"] <= 0.2


def test_predicted_times_are_compared_too():
    made = table(router_shadow_modes=["kv"])
    for number in range(40):
        route = made.route(request(number % 7), float(number))
        route.answered(number + 0.25)
        route.end()
    assert policies(made)["live"]["predicted_ttft_seconds"] == pytest.approx(0.25, abs=0.05)
    assert made.report()["regret"]["first_tokens"] == 40


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("kv:temperature=0.5", "router_temperature", 0.5),
        ("kv:overlap-score-credit=0", "router_kv_overlap_score_credit", 0.0),
        ("kv:router_prefill_load_scale=2", "router_prefill_load_scale", 2.0),
    ],
)
def test_settings_of_a_shadow(text, field, value):
    from dynamo.router.shadow import _changed

    assert getattr(_changed(RouterSettings(), text, text.split(":")[1:]), field) == value


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (["best"], "unknown router mode 'best'"),
        (["kv:colour=red"], "there is no setting 'colour'"),
        (["kv:temperature=hot"], "router_temperature"),
        (["kv:scorer=zone"], "has no weight"),
        (["kv", "kv"], "two shadow policies are alike"),
    ],
)
def test_wrong_shadows_stop_the_start(modes, message):
    with pytest.raises(ConfigError, match=message):
        shadow_policies(RouterSettings(router_shadow_modes=modes), plugins())


def test_scorers_of_a_shadow_may_be_several():
    settings = RouterSettings(router_shadow_modes=["kv:scorer=active-requests=5:scorer=active-requests=2"])
    assert len(shadow_policies(settings, plugins())[0].policy._scorers) == 2


class _Worker:
    def __init__(self, number):
        from dynamo.router.core.cost import WorkerFacts

        self.key = number
        self.facts = WorkerFacts(SIZE)


def test_the_balance_forgets_and_goes_on_for_ever():
    tally = PolicyTally("x")
    one, other = _Worker(1), _Worker(2)
    tally.count(one, [one, other], 1000, 0.0)
    assert tally.imbalance() == 2.0
    tally.count(other, [one, other], 1000, 300.0)  # a half-life later the new one weighs double
    assert tally.imbalance() == pytest.approx(4 / 3)
    tally.count(other, [one, other], 1000, 1e6)
    assert tally.imbalance() == pytest.approx(2.0)
    assert PolicyTally("y").imbalance() == 1.0
