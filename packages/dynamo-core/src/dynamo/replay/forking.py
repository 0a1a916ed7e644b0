"""Exact regret of a sample of decisions: what each request's first token would have taken at every other worker.

Just before a sampled decision the process is forked once per worker. Each child sends the request to its worker and
goes on with the trace, router and all, until that request has its first token; then it tells its parent and ends. The
parent decides as ever. Nothing is estimated: the child of the worker that was really chosen gives what really happened.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from dynamo.errors import ConfigError, DynamoError

__all__ = ["DecisionForks", "ForkedSimulation", "RegretSample", "SampledFlight", "sample_regret"]

_SECONDS = struct.Struct("<d")


class ForkedSimulation(Protocol):
    """What is forked."""

    def first_token_at(self, worker: int, number: int) -> float:
        """Send request `number` to `worker` and run to its first token; seconds from its arrival, NaN if refused."""
        ...


class SampledFlight(Protocol):
    """A request that was served."""

    number: int
    worker: int

    @property
    def ttft(self) -> float:
        """Seconds from the arrival to the first token."""
        ...

    @property
    def predicted_regret(self) -> float | None:
        """What `dynamo.router.regret` made of the decision; None where it could not."""
        ...


class RegretSample(msgspec.Struct, frozen=True):
    """Regrets of the sampled decisions: the first token at the worker chosen, minus at the best of the others."""

    decisions: int
    mean_seconds: float
    """Negative where the choice was mostly the best."""
    mean_positive_seconds: float
    """Decisions that no other worker would have beaten count as 0."""
    p90_seconds: float
    beaten: float
    """Share of decisions that another worker would have beaten."""
    predicted_mean_seconds: float | None
    """Of the same decisions, as the router's predictor saw them; None where it saw none."""
    prediction_error_seconds: float | None
    """Mean distance between the predicted regrets and these."""


class DecisionForks:
    """Forks at decisions spread evenly over a trace.

    Raises:
        ConfigError: processes cannot be forked here.
    """

    def __init__(self, requests: int, sample: int) -> None:
        if not hasattr(os, "fork"):
            raise ConfigError(
                "this system cannot fork processes", param="regret_sample", hint="leave --regret-sample out"
            )
        sample = min(sample, requests)
        self._numbers = {round((place + 0.5) * requests / sample - 0.5) for place in range(sample)}
        self.seconds: dict[int, list[float]] = {}
        """Per sampled request, the first token's time at each worker; NaN where it would have been refused."""

    def before(self, simulation: ForkedSimulation, number: int, workers: int) -> None:
        """Called before each decision."""
        if number in self._numbers:
            self.seconds[number] = _fork_each(lambda worker: simulation.first_token_at(worker, number), workers)


def sample_regret(forks: DecisionForks, flights: Sequence[SampledFlight]) -> RegretSample | None:
    """Sum up; None when no sampled request was served with another worker to compare."""
    exact, predicted = [], []
    for flight in flights:
        others = [
            seconds
            for worker, seconds in enumerate(forks.seconds.get(flight.number, ()))
            if worker != flight.worker and not math.isnan(seconds)
        ]
        if others:
            exact.append(flight.ttft - min(others))
            predicted.append(math.nan if flight.predicted_regret is None else flight.predicted_regret)
    if not exact:
        return None
    regrets, guesses = np.array(exact), np.array(predicted)
    known = ~np.isnan(guesses)
    return RegretSample(
        decisions=len(regrets),
        mean_seconds=float(regrets.mean()),
        mean_positive_seconds=float(regrets.clip(0).mean()),
        p90_seconds=float(np.percentile(regrets, 90)),
        beaten=float((regrets > 0).mean()),
        predicted_mean_seconds=float(guesses[known].mean()) if known.any() else None,
        prediction_error_seconds=float(np.abs(guesses - regrets)[known].mean()) if known.any() else None,
    )


def _fork_each(work: Callable[[int], float], workers: int) -> list[float]:
    """``work(worker)`` for each worker, each in a child of its own, as many at a time as there are cores."""
    at_once = os.cpu_count() or 1
    found: list[float] = []
    for start in range(0, workers, at_once):
        children = [_fork(work, worker) for worker in range(start, min(workers, start + at_once))]
        found += [_answer(*child) for child in children]
    return found


def _fork(work: Callable[[int], float], worker: int) -> tuple[int, int]:
    """Process id of a child, and the pipe that it answers on."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, which numpy's idle ones are; the child uses none and never returns.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    status = 1
    try:
        os.close(reader)
        os.write(writer, _SECONDS.pack(work(worker)))
        status = 0
    finally:
        # Whatever happened: the stack above is the parent's.
        os._exit(status)


def _answer(child: int, reader: int) -> float:
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if len(answer) != _SECONDS.size:
        raise DynamoError("a forked simulation ended without an answer", hint="was it out of memory?")
    seconds: float = _SECONDS.unpack(answer)[0]
    return seconds
