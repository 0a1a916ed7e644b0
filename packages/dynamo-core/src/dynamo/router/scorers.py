"""Scorers that dynamo-core ships."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.routing import CandidateView, RouteRequest

__all__ = ["ActiveRequests", "SessionAffinity"]

_SESSION_SECONDS = 600.0
_MOST_SESSIONS = 100_000


class ActiveRequests:
    """1 / (1 + requests in flight): an idle worker scores 1."""

    consumes = ("active_requests",)

    def score(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[float]:  # noqa: ARG002
        """See `dynamo.protocols.routing.WorkerScorer`."""
        return [1.0 / (1 + candidate.active_requests) for candidate in candidates]


class SessionAffinity:
    """1 for the worker that had the last request of the same session, 0 for the others."""

    consumes = ("key",)

    def __init__(self, ttl_seconds: float = _SESSION_SECONDS, most_sessions: int = _MOST_SESSIONS) -> None:
        """A session is forgotten `ttl_seconds` after its last request; of more than `most_sessions` the oldest go."""
        self._ttl = ttl_seconds
        self._most = most_sessions
        self._sessions: OrderedDict[str, tuple[WorkerKey, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def keep_sessions(self, of: SessionAffinity) -> None:
        """Know those that `of` knows, which this one replaces."""
        self._sessions = of._sessions.copy()

    def score(self, request: RouteRequest, candidates: Sequence[CandidateView]) -> Sequence[float]:
        """See `dynamo.protocols.routing.WorkerScorer`."""
        if request.session is None or request.session not in self._sessions:
            return [0.0] * len(candidates)
        worker, _ = self._sessions[request.session]
        return [1.0 if candidate.key == worker else 0.0 for candidate in candidates]

    def routed(self, request: RouteRequest, worker: WorkerKey, now: float) -> None:
        """See `dynamo.protocols.routing.RouteListener`."""
        if request.session is not None:
            self._sessions[request.session] = (worker, now)
            self._sessions.move_to_end(request.session)
        # Amortised: each is dropped once. The order is that of the last use.
        old = itertools.takewhile(lambda item: now - item[1][1] >= self._ttl, self._sessions.items())
        for session in [session for session, _ in old]:
            del self._sessions[session]
        while len(self._sessions) > self._most:
            self._sessions.popitem(last=False)
