"""Predicts the time to the first token from what a worker has to compute before it; one predictor per served model.

::

    seconds = base + queued * (prompt tokens that wait at the worker) + own * (uncached tokens of this prompt)

The three coefficients are fitted online, by weighted least squares whose weights halve with age. A residual beyond a
few times the usual error is cut to it (Huber's estimator), so that one stalled request does not bend the line. A
coefficient that comes out negative is left out: more work never makes a worker faster. Asked by `dynamo.router.regret`
and `dynamo.router.shadow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["TtftModel", "TtftPredictor"]

#: Observations between two fits, and before the first: a fit takes some 20 us, an observation 2.
_FIT_EVERY = 8
#: Tokens are fitted in thousands, so that all coefficients have about the size of a second.
_SCALE = 1e-3
#: A residual counts as at most this many times the usual one.
_HUBER = 4.0
#: Keeps the equations solvable where all requests are alike; in units of one observation.
_RIDGE = 1e-3


class TtftModel(NamedTuple):
    """Coefficients at one moment, in seconds and seconds per token."""

    base: float
    queued: float
    own: float

    def seconds(self, queued_tokens: float, uncached_tokens: float) -> float:
        """Predicted time to the first token."""
        return self.base + self.queued * queued_tokens + self.own * uncached_tokens


class TtftPredictor:
    """Learns from every first token. `now` is any monotonic clock, in seconds."""

    def __init__(self, half_life_seconds: float = 300.0) -> None:
        """An observation counts half after `half_life_seconds`."""
        self._half_life = half_life_seconds
        self._sums = [0.0] * 8
        """Weighted sums: 1, q, o, qq, qo, oo of the inputs, then errors and cut errors."""
        self._targets = [0.0] * 3
        """Weighted sums of the seconds: times 1, q, o."""
        self._judged = 0.0
        """Weight of the errors."""
        self._last: float | None = None
        self.observed = 0
        self.model: TtftModel | None = None
        """None before there is enough to learn from."""

    @property
    def error_seconds(self) -> float | None:
        """Mean absolute error of the predictions, each made before its outcome was learned; None without any."""
        return self._sums[6] / self._judged if self._judged else None

    def observe(self, queued_tokens: int, uncached_tokens: int, seconds: float, now: float) -> None:
        """A request's first token came after `seconds`."""
        self._age(now)
        if self.model is not None:
            seconds = self._judge(self.model.seconds(queued_tokens, uncached_tokens), seconds)
        queued, own = queued_tokens * _SCALE, uncached_tokens * _SCALE
        sums, targets = self._sums, self._targets
        for place, value in enumerate((1.0, queued, own, queued * queued, queued * own, own * own)):
            sums[place] += value
        for place, value in enumerate((seconds, queued * seconds, own * seconds)):
            targets[place] += value
        self.observed += 1
        if self.observed % _FIT_EVERY == 0:
            base, queued, own = _fit(sums, targets)
            self.model = TtftModel(base, queued * _SCALE, own * _SCALE)

    def _judge(self, predicted: float, seconds: float) -> float:
        """Count the error; `seconds`, or what is left of it when it is an outlier."""
        error = seconds - predicted
        limit = _HUBER * self._sums[7] / self._judged if self._judged >= _FIT_EVERY else abs(error)
        cut = max(-limit, min(limit, error))
        self._sums[6] += abs(error)
        self._sums[7] += abs(cut)
        self._judged += 1.0
        return predicted + cut

    def _age(self, now: float) -> None:
        if self._last is not None and now > self._last:
            factor = 0.5 ** ((now - self._last) / self._half_life)
            self._sums = [value * factor for value in self._sums]
            self._targets = [value * factor for value in self._targets]
            self._judged *= factor
        self._last = now if self._last is None else max(now, self._last)


def _fit(sums: Sequence[float], targets: Sequence[float]) -> tuple[float, float, float]:
    """Least squares with coefficients of at least zero: those that come out negative are left out, one by one."""
    n, q, o, qq, qo, oo = sums[:6]
    products = np.array([[n, q, o], [q, qq, qo], [o, qo, oo]]) + _RIDGE * np.eye(3)
    wanted = np.array(targets)
    whole = np.zeros(3)
    kept = [0, 1, 2]
    while kept:
        found = np.linalg.solve(products[np.ix_(kept, kept)], wanted[kept])
        if found.min() >= 0:
            whole[kept] = found
            break
        del kept[int(found.argmin())]
    base, queued, own = whole.tolist()
    return base, queued, own
