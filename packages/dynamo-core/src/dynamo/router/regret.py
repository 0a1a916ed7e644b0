"""What a decision cost: the time to the first token that came, against the least that was predicted elsewhere.

`CandidateTable` has one meter per model where workers are measured. At the decision nothing is computed, only kept; at
the first token the meter predicts, from what was known then, what every other candidate would have taken::

    regret = realised - min(predicted of the others)

A prediction is no measurement: the predictor's own mean error stands beside every regret, and one below it says
nothing. ``dynamo replay --regret-sample`` has exact ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dynamo.router.core.cost import WorkerFacts
from dynamo.router.core.ttft_predictor import TtftPredictor
from dynamo.router.metrics import ModelRouterMetrics

__all__ = ["PendingTtft", "RegretMeter", "TtftOutcome"]


class TtftOutcome(msgspec.Struct, frozen=True):
    """What came of one decision; all in seconds."""

    realised: float
    """From the decision to the first token."""
    regret: float | None = None
    """Negative where the choice was better than all others were predicted to be; None without others."""
    predicted: float | None = None
    """For the chosen worker, at the decision; None where nothing was known yet."""
    predictor_error: float | None = None
    """Mean absolute error of the predictor at that time."""


class PendingTtft:
    """One decision whose first token has not come. :meth:`first_token` counts once."""

    __slots__ = ("_chosen", "_decided", "_facts", "_meter", "_model", "_prompt_tokens", "outcome")

    def __init__(
        self, meter: RegretMeter, facts: Sequence[WorkerFacts], chosen: int, prompt_tokens: int, decided: float
    ) -> None:
        """`facts` has one entry per candidate, and must not change; `chosen` is the place of the winner."""
        self._meter: RegretMeter | None = meter
        self._model = meter.predictor.model
        self._facts = facts
        self._chosen = chosen
        self._prompt_tokens = prompt_tokens
        self._decided = decided
        self.outcome: TtftOutcome | None = None
        """None before the first token."""

    def predictions(self) -> list[float] | None:
        """Seconds per candidate, as predicted at the decision; None where nothing was known yet."""
        return None if self._model is None else self._model.seconds(self._facts, self._prompt_tokens)

    def first_token(self, now: float) -> None:
        """It came, on the clock of the decision."""
        meter, self._meter = self._meter, None
        if meter is None:
            return
        realised = now - self._decided
        predicted = self.predictions()
        self.outcome = TtftOutcome(realised)
        if predicted is not None:
            others = [seconds for place, seconds in enumerate(predicted) if place != self._chosen]
            self.outcome = TtftOutcome(
                realised,
                realised - min(others) if others else None,
                predicted[self._chosen],
                meter.predictor.error_seconds,
            )
        meter.came(self._facts[self._chosen], self._prompt_tokens, self.outcome, now)


class RegretMeter:
    """Regrets of one model. `now` is any monotonic clock, in seconds."""

    def __init__(self, metrics: ModelRouterMetrics | None = None) -> None:
        self.predictor = TtftPredictor()
        self._metrics = metrics
        self._regrets = 0
        self._sum = self._positive_sum = 0.0

    def begin(self, facts: Sequence[WorkerFacts], chosen: int, prompt_tokens: int, now: float) -> PendingTtft:
        """A decision was made; see `PendingTtft`."""
        return PendingTtft(self, facts, chosen, prompt_tokens, now)

    def predict(self, facts: WorkerFacts, prompt_tokens: int) -> float | None:
        """Seconds to the first token at a worker with these facts; None where too little was seen yet."""
        model = self.predictor.model
        return None if model is None else model.seconds((facts,), prompt_tokens)[0]

    def came(self, facts: WorkerFacts, prompt_tokens: int, outcome: TtftOutcome, now: float) -> None:
        """Called by a pending decision: this is what became of it, at a worker with these facts."""
        self.predictor.observe(facts, prompt_tokens, outcome.realised, now)
        if outcome.predicted is None:
            return
        if outcome.regret is not None:
            self._regrets += 1
            self._sum += outcome.regret
            self._positive_sum += max(0.0, outcome.regret)
        if self._metrics is not None:
            self._metrics.realised(outcome.regret, abs(outcome.realised - outcome.predicted))

    def to_json(self) -> dict[str, Any]:
        """Since the start; for people and programs."""
        error = self.predictor.error_seconds
        return {
            "first_tokens": self.predictor.observed,
            "regrets": self._regrets,
            "mean_regret_seconds": round(self._sum / self._regrets, 6) if self._regrets else None,
            "mean_positive_regret_seconds": round(self._positive_sum / self._regrets, 6) if self._regrets else None,
            "predictor_error_seconds": None if error is None else round(error, 6),
        }
