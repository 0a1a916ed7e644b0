"""A router scorer that is not part of dynamo: workers in the zone of the frontend score 1, others 0.

A worker says where it is in its discovery record's metadata (key ``zone``); the frontend in ``MY_ZONE``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from dynamo.hookspecs import hookimpl
from dynamo.protocols.registry import Registry
from dynamo.protocols.routing import CandidateView, RouteRequest, WorkerScorer

__all__ = ["SameZone"]

DYNAMO_PLUGIN_API = "1.0"


class SameZone:
    """Implements `dynamo.protocols.routing.WorkerScorer`."""

    consumes = ("record",)

    def __init__(self) -> None:
        self._zone = os.environ.get("MY_ZONE", "")

    def score(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[float]:  # noqa: ARG002
        """1 for the own zone, 0 for others and for workers that do not say where they are."""
        return [1.0 if candidate.record.metadata.get("zone") == self._zone else 0.0 for candidate in candidates]


@hookimpl
def dynamo_register_routers(scorers: Registry[Callable[[], WorkerScorer]]) -> None:
    """Register under the name that ``--router-scorer`` takes."""
    scorers.register("same-zone", SameZone, summary="workers in the frontend's zone")
