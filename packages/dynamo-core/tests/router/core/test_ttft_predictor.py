"""The predictor finds the line behind observations, whatever a few of them say."""

from __future__ import annotations

import random

import pytest

from dynamo.router.core.ttft_predictor import TtftPredictor

BASE, QUEUED, OWN = 0.05, 30e-6, 40e-6


def learned(n=400, *, outliers=0.0, noise=0.0, seed=3, half_life=300.0, predictor=None, start=0.0, factor=1.0):
    rng = random.Random(seed)
    predictor = predictor or TtftPredictor(half_life)
    for step in range(n):
        queued, own = rng.randrange(40_000), rng.randrange(1, 20_000)
        seconds = factor * (BASE + QUEUED * queued + OWN * own) * (1 + noise * rng.uniform(-1, 1))
        if rng.random() < outliers:
            seconds += 60.0
        predictor.observe(queued, own, seconds, start + step * 0.1)
    return predictor


def test_nothing_is_predicted_before_there_is_something_to_learn_from():
    predictor = TtftPredictor()
    for step in range(7):
        predictor.observe(1000 * step, 500, 1.0, float(step))
        assert predictor.model is None
    assert predictor.error_seconds is None


def test_a_line_is_found_exactly():
    model = learned().model
    assert model.base == pytest.approx(BASE, rel=0.05)
    assert model.queued == pytest.approx(QUEUED, rel=0.01)
    assert model.own == pytest.approx(OWN, rel=0.01)
    assert learned().error_seconds < 0.01


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
        predictor.observe(step * 100, 10_000, 10.0 - step * 0.05, float(step))
    assert min(predictor.model) >= 0
    assert predictor.model.seconds(0, 10_000) > 0


def test_requests_that_are_all_alike_are_predicted():
    predictor = TtftPredictor()
    for step in range(64):
        predictor.observe(0, 1000, 0.5, float(step))
    assert predictor.model.seconds(0, 1000) == pytest.approx(0.5, rel=0.01)


def test_a_clock_that_stands_still_or_goes_back_is_harmless():
    predictor = TtftPredictor()
    for step in range(32):
        predictor.observe(0, 1000, 0.5, 100.0 - step)
    assert predictor.model.seconds(0, 1000) == pytest.approx(0.5, rel=0.01)
