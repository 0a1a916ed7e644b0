"""Pickers that dynamo-core ships."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from dynamo.protocols.routing import CandidateView, RouteRequest
from dynamo.router.core.cost import softmax_weights

__all__ = ["MaxScore", "PowerOfTwo", "Random", "RoundRobin", "Softmax"]


class _Seeded:
    """Has random numbers of its own; see `dynamo.protocols.routing.SeededPicker`."""

    def __init__(self) -> None:
        self._random = random.Random()

    def seed(self, value: int) -> None:
        """See `SeededPicker`."""
        self._random.seed(value)


class RoundRobin:
    """One candidate after the other, whatever their scores."""

    def __init__(self) -> None:
        self._turn = itertools.count()

    def pick(
        self,
        request: RouteRequest,  # noqa: ARG002
        candidates: Sequence[CandidateView],
        scores: Sequence[float],  # noqa: ARG002
    ) -> CandidateView:
        """See `dynamo.protocols.routing.WorkerPicker`."""
        return candidates[next(self._turn) % len(candidates)]


class Random(_Seeded):
    """Who offers itself, where workers are asked, or a uniformly random candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.lenient = True
        """See `dynamo.protocols.routing.LenientPicker`: until it is seeded, for who seeds it wants the same again."""

    def seed(self, value: int) -> None:
        """See `SeededPicker`."""
        super().seed(value)
        self.lenient = False

    def pick(
        self,
        request: RouteRequest,
        candidates: Sequence[CandidateView],
        scores: Sequence[float],  # noqa: ARG002
    ) -> CandidateView:
        """See `dynamo.protocols.routing.WorkerPicker`."""
        if request.claim is not None and self.lenient:
            for candidate in candidates:
                if candidate.key == request.claim.worker:
                    return candidate
        return self._random.choice(candidates)


class MaxScore(_Seeded):
    """The highest score; among equals a random one, so that several routers do not herd."""

    def pick(
        self,
        request: RouteRequest,  # noqa: ARG002
        candidates: Sequence[CandidateView],
        scores: Sequence[float],
    ) -> CandidateView:
        """See `dynamo.protocols.routing.WorkerPicker`."""
        best = max(scores)
        return self._random.choice([c for c, score in zip(candidates, scores, strict=True) if score == best])


class PowerOfTwo(_Seeded):
    """The better of two random candidates: nearly as even as the best of all, and routers do not herd."""

    def pick(
        self,
        request: RouteRequest,  # noqa: ARG002
        candidates: Sequence[CandidateView],
        scores: Sequence[float],
    ) -> CandidateView:
        """See `dynamo.protocols.routing.WorkerPicker`."""
        if len(candidates) == 1:
            return candidates[0]
        one, other = self._random.sample(range(len(candidates)), 2)
        return candidates[one if scores[one] >= scores[other] else other]


class Softmax(_Seeded):
    """Draws a candidate, likelier with a higher score; at temperature 0 the highest, like `MaxScore`."""

    def __init__(self, temperature: float = 0.0) -> None:
        super().__init__()
        self._temperature = temperature
        self._highest = MaxScore()

    def seed(self, value: int) -> None:
        """See `SeededPicker`."""
        super().seed(value)
        self._highest.seed(value)

    def pick(
        self, request: RouteRequest, candidates: Sequence[CandidateView], scores: Sequence[float]
    ) -> CandidateView:
        """See `dynamo.protocols.routing.WorkerPicker`."""
        overrides = request.overrides
        temperature = self._temperature
        if overrides is not None and overrides.temperature is not None:
            temperature = overrides.temperature
        if temperature <= 0:
            return self._highest.pick(request, candidates, scores)
        return self._random.choices(candidates, softmax_weights(scores, temperature))[0]
