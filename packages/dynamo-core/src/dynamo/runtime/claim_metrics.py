"""How often workers claimed requests, for ``/metrics`` of every process; registered by `DistributedRuntime`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from dynamo.protocols.claims import CountsClaims

__all__ = ["ClaimCollector"]


class ClaimCollector(Collector):
    """Reads the counts when somebody scrapes. Without a plane that counts there is no family."""

    def __init__(self, sides: Callable[[], Iterable[tuple[str, object]]]) -> None:
        """`sides` gives the plane, as ``asking``, and its server, as ``serving``, or None where there is none."""
        self._sides = sides

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        family = CounterMetricFamily(
            "dynamo_request_plane_claims", "Asks for a worker that takes a request.", labels=["side", "outcome"]
        )
        for side, counted in self._sides():
            if isinstance(counted, CountsClaims):
                for outcome, number in counted.claim_outcomes.items():
                    family.add_metric([side, outcome], number)
        if family.samples:
            yield family
