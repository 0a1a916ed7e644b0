"""What a router's filters, scorers and pickers see (DESIGN 4, hook `dynamo_register_routers`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.llm import DisaggregationMode
from dynamo.protocols.load import EngineLoad

__all__ = ["CandidateView", "RouteRequest", "WorkerFilter", "WorkerPicker", "WorkerScorer"]


class RouteRequest(msgspec.Struct, frozen=True):
    """The facts of a request that a routing decision may use."""

    request_id: str
    model: str
    prompt_tokens: int = 0
    mode: DisaggregationMode = DisaggregationMode.AGGREGATED
    lora: str | None = None
    priority: int = 0
    pinned: WorkerKey | None = None
    """The caller chose this worker (mode `direct`)."""
    excluded: frozenset[int] = frozenset()
    """Instances that already failed this request."""


class CandidateView(Protocol):
    """One worker that could take the request, as the router knows it at this moment."""

    @property
    def key(self) -> WorkerKey:
        """The routing key."""
        ...

    @property
    def record(self) -> InstanceRecord:
        """Its discovery record, with the model deployment card."""
        ...

    @property
    def active_requests(self) -> int:
        """Requests that this router sent and that have not ended."""
        ...

    @property
    def load(self) -> EngineLoad | None:
        """What the worker last said of itself; None when it says nothing, or has not for some seconds."""
        ...


class WorkerFilter(Protocol):
    """Keeps the candidates that may take a request."""

    def filter(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[CandidateView]:
        """Those that may, in their order. Pure and quick: it runs for every request."""
        ...


class WorkerScorer(Protocol):
    """Rates candidates."""

    @property
    def consumes(self) -> tuple[str, ...]:
        """Names of the candidate attributes that it reads."""
        ...

    def score(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[float]:
        """One number in [0, 1] per candidate, 1 best."""
        ...


class WorkerPicker(Protocol):
    """Chooses one candidate."""

    def pick(
        self, request: RouteRequest, candidates: Sequence[CandidateView], scores: Sequence[float]
    ) -> CandidateView:
        """One of `candidates`, which is not empty; `scores` are weighted sums, higher is better."""
        ...
