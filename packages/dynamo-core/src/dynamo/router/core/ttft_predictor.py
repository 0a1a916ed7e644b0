"""Predicts the time to the first token from what a worker has to do until then; one predictor per served model.

::

    seconds = base + queued * (prompt tokens that wait at the worker) + own * (uncached tokens of this prompt)
            + attention * (pairs of such a token and one before it) + decode * (tokens that running requests hold)

The coefficients are fitted online, by weighted least squares whose weights halve with age. A residual beyond a
few times the usual error is cut to it (Huber's estimator), so that one stalled request does not bend the line. A
coefficient that comes out negative is left out: more work never makes a worker faster. Asked by `dynamo.router.regret`
and `dynamo.router.shadow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dynamo.router.core.cost import WorkerFacts, uncached_tokens

__all__ = ["TtftModel", "TtftPredictor"]

_Floats: TypeAlias = "npt.NDArray[np.float64]"

#: Observations before a fit, which takes longer than all of them; of more of them within `_FIT_SECONDS` one is made.
_FIT_EVERY = 8
_FIT_SECONDS = 1.0
_MOST_WAITING = 64
#: What the inputs are fitted in, so that all coefficients have about the size of a second.
_PREFILL, _PAIRS, _HELD = 1e3, 1e8, 1e5
_UNITS = np.array((1.0, _PREFILL, _PREFILL, _PAIRS, _HELD))
#: More of anything, in `_UNITS`, is not a worker's load but a report that is wrong; it would drown all others.
_MOST = 1e6
#: A residual counts as at most this many times the usual one.
_HUBER = 4.0
#: Keeps the equations solvable where all requests are alike; in units of one observation.
_RIDGE = 1e-3


class TtftModel(NamedTuple):
    """Coefficients at one moment, in seconds and seconds per token or pair."""

    base: float
    queued: float
    own: float
    attention: float
    decode: float

    def seconds(self, workers: Sequence[WorkerFacts], prompt_tokens: int) -> list[float]:
        """Predicted times to the first token of a prompt, per worker."""
        base, queued, own, attention, decode = self
        found = []
        # Written out, without calls: it runs for every candidate of every request.
        for facts in workers:
            uncached = prompt_tokens - facts.overlap_blocks * facts.block_size
            if uncached < 0:
                uncached = 0
            found.append(
                base
                + queued * facts.active_prefill_tokens
                + uncached * (own + attention * (prompt_tokens - uncached / 2))
                + decode * facts.active_decode_blocks * facts.block_size
            )
        return found


class TtftPredictor:
    """Learns from every first token. `now` is any monotonic clock, in seconds."""

    def __init__(self, half_life_seconds: float = 300.0) -> None:
        """An observation counts half after `half_life_seconds`."""
        self._half_life = half_life_seconds
        self._products = np.zeros((len(_UNITS), len(_UNITS)))
        """Weighted sums of the products of the inputs; shape ``[inputs, inputs]``."""
        self._targets = np.zeros(len(_UNITS))
        """Weighted sums of the inputs times the seconds."""
        self._errors = self._cut_errors = 0.0
        self._judged = 0.0
        """Weight of the errors."""
        self._last: float | None = None
        self._waiting: list[tuple[float, float, tuple[float, ...]]] = []
        """Observations that are in no sum yet: time, seconds and inputs of each."""
        self._fitted: float | None = None
        """Time of the last fit, to which the sums belong."""
        self.observed = 0
        self.model: TtftModel | None = None
        """None before there is enough to learn from."""

    @property
    def error_seconds(self) -> float | None:
        """Mean absolute error of the predictions, each made before its outcome was learned; None without any."""
        return self._errors / self._judged if self._judged else None

    def observe(self, facts: WorkerFacts, prompt_tokens: int, seconds: float, now: float) -> None:
        """The first token of a prompt came after `seconds` from a worker that had `facts` at the decision."""
        inputs = _inputs(facts, prompt_tokens)
        if max(inputs) > _MOST:
            return
        now = self._age(now)
        if self.model is not None:
            seconds = self._judge(self.model.seconds((facts,), prompt_tokens)[0], seconds)
        self._waiting.append((now, seconds, inputs))
        self.observed += 1
        waiting = len(self._waiting)
        if waiting >= _FIT_EVERY:
            recent = self._fitted is not None and now - self._fitted < _FIT_SECONDS
            if not recent or waiting >= _MOST_WAITING:
                self._fit(now)

    def _fit(self, now: float) -> None:
        """Take what waits into the sums, each observation with its weight `now`, and solve for the coefficients."""
        if self._fitted is not None:
            kept = 0.5 ** ((now - self._fitted) / self._half_life)
            self._products *= kept
            self._targets *= kept
        self._fitted = now
        times, seconds, inputs = map(np.array, zip(*self._waiting, strict=True))
        self._waiting.clear()
        weighted = inputs * (0.5 ** ((now - times) / self._half_life))[:, None]
        self._products += weighted.T @ inputs
        self._targets += seconds @ weighted
        self.model = TtftModel(*(_solve(self._products, self._targets) / _UNITS).tolist())

    def _judge(self, predicted: float, seconds: float) -> float:
        """Count the error; `seconds`, or what is left of it when it is an outlier."""
        error = seconds - predicted
        limit = _HUBER * self._cut_errors / self._judged if self._judged >= _FIT_EVERY else abs(error)
        cut = max(-limit, min(limit, error))
        self._errors += abs(error)
        self._cut_errors += abs(cut)
        self._judged += 1.0
        return predicted + cut

    def _age(self, now: float) -> float:
        """Let the errors count less; the time that goes on, whatever `now` is."""
        if self._last is not None and now > self._last:
            factor = 0.5 ** ((now - self._last) / self._half_life)
            self._errors *= factor
            self._cut_errors *= factor
            self._judged *= factor
        self._last = now if self._last is None else max(now, self._last)
        return self._last


def _inputs(facts: WorkerFacts, prompt_tokens: int) -> tuple[float, ...]:
    """What the coefficients are multiplied by, in `_UNITS`."""
    own = uncached_tokens(facts, prompt_tokens)
    pairs = own * (prompt_tokens - own / 2)
    held = facts.active_decode_blocks * facts.block_size
    return (1.0, facts.active_prefill_tokens / _PREFILL, own / _PREFILL, pairs / _PAIRS, held / _HELD)


def _solve(products: _Floats, targets: _Floats) -> _Floats:
    """Least squares with coefficients of at least zero: those that come out negative are left out, one by one."""
    regular = products + _RIDGE * np.eye(len(targets))
    whole = np.zeros(len(targets))
    kept = list(range(len(targets)))
    while kept:
        found = np.linalg.solve(regular[np.ix_(kept, kept)], targets[kept])
        if found.min() >= 0:
            whole[kept] = found
            break
        del kept[int(found.argmin())]
    return whole
