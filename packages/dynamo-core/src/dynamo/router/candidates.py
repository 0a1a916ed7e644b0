"""The workers of one model that may take a request, with what this router has sent them."""

from __future__ import annotations

from collections.abc import Callable

from dynamo.protocols.addressing import WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.routing import RouteRequest
from dynamo.router.policy import RouterPolicy

__all__ = ["Candidate", "CandidateTable"]


class Candidate:
    """One data-parallel rank of one instance; implements `dynamo.protocols.routing.CandidateView`."""

    __slots__ = ("active_requests", "key", "record")

    def __init__(self, key: WorkerKey, record: InstanceRecord) -> None:
        self.key = key
        self.record = record
        self.active_requests = 0


class CandidateTable:
    """Candidates by routing key, and the policy that chooses among them."""

    def __init__(self, policy: RouterPolicy) -> None:
        self._policy = policy
        self._candidates: dict[WorkerKey, Candidate] = {}
        self._ordered: list[Candidate] = []

    def __len__(self) -> int:
        return len(self._ordered)

    def put(self, record: InstanceRecord) -> None:
        """Add an instance, or take over its new record; requests in flight stay counted."""
        ranks = max(1, record.card.dp_size) if record.card is not None else 1
        self._keep(lambda key: key.instance_id != record.id or key.dp_rank < ranks)
        for rank in range(ranks):
            key = WorkerKey(record.id, rank)
            known = self._candidates.get(key)
            if known is None:
                self._candidates[key] = Candidate(key, record)
            else:
                known.record = record
        self._order()

    def remove(self, instance_id: int) -> None:
        """Forget an instance."""
        self._keep(lambda key: key.instance_id != instance_id)
        self._order()

    def records(self) -> list[InstanceRecord]:
        """One record per instance."""
        return list({candidate.record.instance_id: candidate.record for candidate in self._ordered}.values())

    def select(self, request: RouteRequest) -> Candidate:
        """The candidate for `request`; the caller counts it up and, at the end, down.

        Raises:
            NoInstances: there is none.
        """
        chosen = self._policy.select(request, self._ordered)
        return self._candidates[chosen.key]

    def _keep(self, wanted: Callable[[WorkerKey], bool]) -> None:
        self._candidates = {key: candidate for key, candidate in self._candidates.items() if wanted(key)}

    def _order(self) -> None:
        self._ordered = [self._candidates[key] for key in sorted(self._candidates)]
