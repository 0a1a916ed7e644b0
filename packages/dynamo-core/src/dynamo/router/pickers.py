"""Pickers that dynamo-core ships."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from dynamo.protocols.routing import CandidateView, RouteRequest

__all__ = ["MaxScore", "Random", "RoundRobin"]


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


class Random:
    """A uniformly random candidate."""

    def __init__(self) -> None:
        self._random = random.Random()

    def pick(
        self,
        request: RouteRequest,  # noqa: ARG002
        candidates: Sequence[CandidateView],
        scores: Sequence[float],  # noqa: ARG002
    ) -> CandidateView:
        """See `dynamo.protocols.routing.WorkerPicker`."""
        return self._random.choice(candidates)


class MaxScore:
    """The highest score; among equals a random one, so that several routers do not herd."""

    def __init__(self) -> None:
        self._random = random.Random()

    def pick(
        self,
        request: RouteRequest,  # noqa: ARG002
        candidates: Sequence[CandidateView],
        scores: Sequence[float],
    ) -> CandidateView:
        """See `dynamo.protocols.routing.WorkerPicker`."""
        best = max(scores)
        return self._random.choice([c for c, score in zip(candidates, scores, strict=True) if score == best])
