"""The predictor finds the line behind observations, whatever a few of them say."""

from __future__ import annotations

import random

import pytest

from dynamo.router.core.cost import WorkerFacts
from dynamo.router.core.ttft_predictor import TtftPredictor

SIZE = 16
BASE, QUEUED, OWN, ATTENTION, DECODE = 0.05, 30e-6, 40e-6, 2e-9, 3e-7


def facts(queued=0, overlap=0, held=0):
    return WorkerFacts(SIZE, overlap, 0, queued, held)


def learned(n=400, *, outliers=0.0, noise=0.0, seed=3, half_life=300.0, predictor=None, start=0.0, factor=1.0):
    rng = random.Random(seed)
    predictor = predictor or TtftPredictor(half_life)
    for step in range(n):
        queued, prompt, overlap, held = (rng.randrange(1, most) for most in (40_000, 20_000, 1000, 30_000))
        own = max(0, prompt - overlap * SIZE)
        seconds = BASE + QUEUED * queued + OWN * own + ATTENTION * own * (prompt - own / 2) + DECODE * held * SIZE
        seconds *= factor * (1 + noise * rng.uniform(-1, 1))
        if rng.random() < outliers:
            seconds += 60.0
        predictor.observe(facts(queued, overlap, held), prompt, seconds, start + step * 0.1)
    return predictor


def test_nothing_is_predicted_before_there_is_something_to_learn_from():
    predictor = TtftPredictor()
    for step in range(7):
        predictor.observe(facts(1000 * step), 500, 1.0, float(step))
        assert predictor.model is None
    assert predictor.error_seconds is None


def test_every_coefficient_is_found():
    predictor = learned()
    expected = (BASE, QUEUED, OWN, ATTENTION, DECODE)
    assert predictor.model == pytest.approx(expected, rel=0.05)
    assert predictor.error_seconds < 0.01


def test_a_prediction_counts_what_the_worker_has_to_do():
    model = learned().model
    idle, waiting, cached, decoding = model.seconds(
        [facts(), facts(queued=10_000), facts(overlap=500), facts(held=10_000)], 16_000
    )
    assert waiting - idle == pytest.approx(QUEUED * 10_000, rel=0.05)
    assert decoding - idle == pytest.approx(DECODE * 160_000, rel=0.05)
    # Half of the tokens, and 8,000 * 8,000 / 2 of the 16,000 * 16,000 / 2 pairs are those of cached tokens alone.
    assert idle - cached == pytest.approx(OWN * 8000 + ATTENTION * 32e6, rel=0.05)
    assert model.seconds([facts(overlap=2000)], 16_000) == pytest.approx([model.base])


def test_outliers_do_not_bend_it():
    model = learned(2000, outliers=0.02, noise=0.05).model
    assert model.queued == pytest.approx(QUEUED, rel=0.15)
    assert model.own == pytest.approx(OWN, rel=0.25)


def test_the_error_counts_outliers_whole():
    assert learned(2000, outliers=0.05).error_seconds > 1.0


def test_a_change_is_followed():
    predictor = learned(1000, half_life=10.0)
    learned(2000, half_life=10.0, predictor=predictor, start=100.0, factor=3.0)
    assert predictor.model.queued == pytest.approx(3 * QUEUED, rel=0.1)


def test_coefficients_are_never_negative():
    predictor = TtftPredictor()
    for step in range(200):
        predictor.observe(facts(step * 100), 10_000, 10.0 - step * 0.05, float(step))
    assert min(predictor.model) >= 0
    assert predictor.model.seconds([facts()], 10_000)[0] > 0


def test_requests_that_are_all_alike_are_predicted():
    predictor = TtftPredictor()
    for step in range(64):
        predictor.observe(facts(), 1000, 0.5, float(step))
    assert predictor.model.seconds([facts()], 1000)[0] == pytest.approx(0.5, rel=0.01)


def test_a_clock_that_stands_still_or_goes_back_is_harmless():
    predictor = TtftPredictor()
    for step in range(32):
        predictor.observe(facts(), 1000, 0.5, 100.0 - step)
    assert predictor.model.seconds([facts()], 1000)[0] == pytest.approx(0.5, rel=0.01)


def test_loads_that_cannot_be_teach_nothing():
    predictor = learned()
    before = predictor.model
    for step in range(16):
        predictor.observe(facts(queued=2**60, held=2**60), 1000, 0.1, 50.0 + step)
    assert predictor.model == before
    assert predictor.error_seconds < 0.01
