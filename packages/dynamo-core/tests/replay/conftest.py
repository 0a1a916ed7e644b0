"""Small traces that tests replay."""

from __future__ import annotations

import random

import pytest

from dynamo.mocker.perf_model import PerfModel
from dynamo.replay.traces import Trace, TraceRequest

BLOCK = 4


@pytest.fixture
def perf_model() -> PerfModel:
    """Round numbers: 1 s and 0.1 s per prompt token; 2 s per decode."""
    return PerfModel(1.0, 0.1, 0.0, 2.0, 0.0, 0.0)


@pytest.fixture
def conversations() -> Trace:
    """40 conversations of 6 turns each, interleaved; each turn's prompt is the one before and two blocks more."""
    randomness = random.Random(7)
    requests = []
    for conversation in range(40):
        time, hashes = randomness.random() * 300, []
        for _ in range(6):
            hashes = [*hashes, *(randomness.getrandbits(60) for _ in range(2))]
            requests.append(TraceRequest(time, len(hashes) * BLOCK + 1, 3, hashes))
            time += 60 + randomness.random() * 60
        assert len(set(hashes)) == 12, conversation
    requests.sort(key=lambda request: request.arrival_seconds)
    return Trace("conversations", BLOCK, requests)
