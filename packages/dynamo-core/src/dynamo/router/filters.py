"""Filters that dynamo-core ships."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo.protocols.routing import CandidateView, RouteRequest

__all__ = ["HoldsLora", "NotExcluded", "Pinned"]


class HoldsLora:
    """Keeps the workers that have the request's LoRA adapter loaded; all of them when it asks for none."""

    def filter(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[CandidateView]:
        """See `dynamo.protocols.routing.WorkerFilter`."""
        lora = request.lora
        if lora is None:
            return candidates
        return [c for c in candidates if c.record.card is not None and lora in c.record.card.loras]


class NotExcluded:
    """Leaves out the instances that already failed this request, unless that leaves nobody."""

    def filter(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[CandidateView]:
        """See `dynamo.protocols.routing.WorkerFilter`."""
        if not request.excluded:
            return candidates
        return [c for c in candidates if c.key.instance_id not in request.excluded] or candidates


class Pinned:
    """Keeps the worker that the caller chose; all of them when the caller chose none."""

    def filter(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[CandidateView]:
        """See `dynamo.protocols.routing.WorkerFilter`."""
        if request.pinned is None:
            return candidates
        return [candidate for candidate in candidates if candidate.key == request.pinned]
