"""Regret: realised time to the first token, minus the least that was predicted for the others at the decision."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from dynamo.router.core.cost import WorkerFacts, uncached_tokens
from dynamo.router.metrics import RouterMetrics
from dynamo.router.regret import RegretMeter

SIZE = 16
PER_TOKEN = 1e-3


def facts(queued=0, overlap=0):
    return WorkerFacts(SIZE, overlap, 0, queued)


def taught(metrics=None):
    """A meter that has seen 64 first tokens, each a millisecond per token before it."""
    meter = RegretMeter(metrics)
    for step in range(64):
        queued, prompt = 37 * step % 1000, 16 + 53 * step % 900
        pending = meter.begin([facts(queued)], 0, prompt, float(step))
        pending.first_token(step + PER_TOKEN * (queued + prompt))
    return meter


def test_tokens_that_are_cached_are_not_computed():
    assert uncached_tokens(facts(overlap=2), 40) == 8
    assert uncached_tokens(facts(overlap=3), 40) == 0


def test_nothing_is_predicted_at_first():
    pending = RegretMeter().begin([facts(), facts(500)], 0, 160, 10.0)
    assert pending.predictions() is None
    assert pending.outcome is None
    pending.first_token(10.5)
    assert pending.outcome.realised == 0.5
    assert pending.outcome.regret is pending.outcome.predicted is None


def test_the_best_of_the_others_counts():
    pending = taught().begin([facts(queued=900), facts(queued=100), facts(overlap=10)], 0, 160, 100.0)
    assert pending.predictions() == pytest.approx([1.06, 0.26, 0.0], abs=0.06)
    pending.first_token(101.06)
    assert pending.outcome.regret == pytest.approx(1.06, abs=0.06)
    assert pending.outcome.predicted == pytest.approx(1.06, abs=0.06)
    assert pending.outcome.predictor_error < 0.05


def test_a_good_choice_has_a_negative_regret():
    pending = taught().begin([facts(queued=900), facts(overlap=10)], 1, 160, 100.0)
    pending.first_token(100.01)
    assert pending.outcome.regret == pytest.approx(-1.05, abs=0.06)


def test_without_others_there_is_nothing_to_regret():
    pending = taught().begin([facts()], 0, 160, 100.0)
    pending.first_token(100.2)
    assert pending.outcome.regret is None
    assert pending.outcome.predicted == pytest.approx(0.16, abs=0.06)


def test_only_the_first_token_counts():
    meter = taught()
    pending = meter.begin([facts(), facts()], 0, 160, 100.0)
    pending.first_token(100.2)
    outcome = pending.outcome
    pending.first_token(105.0)
    assert pending.outcome is outcome
    assert meter.to_json()["regrets"] == 1


def test_the_prediction_is_that_of_the_decision():
    meter = taught()
    pending = meter.begin([facts(), facts(queued=100)], 0, 160, 100.0)
    before = pending.predictions()
    for step in range(64):
        other = meter.begin([facts()], 0, 160, 100.0 + step)
        other.first_token(110.0 + step)
    assert pending.predictions() == before


def test_metrics_and_summary():
    registry = CollectorRegistry()
    meter = taught(RouterMetrics(registry).of("m"))
    for chosen, seconds in ((0, 1.06), (1, 0.01)):
        pending = meter.begin([facts(queued=900), facts(overlap=10)], chosen, 160, 100.0)
        pending.first_token(100.0 + seconds)
    labels = {"model": "m"}
    assert registry.get_sample_value("dynamo_router_ttft_regret_seconds_count", labels) == 2
    assert registry.get_sample_value("dynamo_router_ttft_regret_seconds_sum", labels) == pytest.approx(1.06, abs=0.06)
    assert registry.get_sample_value("dynamo_router_ttft_regret_seconds_bucket", {**labels, "le": "0.0"}) == 1
    assert registry.get_sample_value("dynamo_router_ttft_prediction_error_seconds_count", labels) == 58
    summary = meter.to_json()
    assert (summary["first_tokens"], summary["regrets"]) == (66, 2)
    assert summary["mean_positive_regret_seconds"] > summary["mean_regret_seconds"]
