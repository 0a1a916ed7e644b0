"""Scorers that dynamo-core ships."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo.protocols.routing import CandidateView, RouteRequest

__all__ = ["ActiveRequests"]


class ActiveRequests:
    """1 / (1 + requests in flight): an idle worker scores 1."""

    consumes = ("active_requests",)

    def score(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[float]:  # noqa: ARG002
        """See `dynamo.protocols.routing.WorkerScorer`."""
        return [1.0 / (1 + candidate.active_requests) for candidate in candidates]
