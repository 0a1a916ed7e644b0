"""Metrics of the router's queue. Tenants are labels, so there is a limit to how many are told apart."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["ModelQueueMetrics", "QueueMetrics"]

_PREFIX = "dynamo_frontend_router"
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
#: Further tenants are counted together, as "other".
_TENANTS = 32


class QueueMetrics:
    """All families of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tenants: set[str] = set()
        self.received = Counter(
            f"{_PREFIX}_admission_received", "Requests that asked to go to a worker.", ["model"], registry=registry
        )
        self.rejected = Counter(
            f"{_PREFIX}_admission_rejected",
            "Requests that the queue refused: queue_full, displaced by others, expired, draining.",
            ["model", "reason"],
            registry=registry,
        )
        self.pending_requests = Gauge(
            f"{_PREFIX}_queue_pending_requests", "Requests that wait.", ["model", "tenant"], registry=registry
        )
        self.pending_tokens = Gauge(
            f"{_PREFIX}_queue_pending_isl_tokens", "Prompt tokens that wait.", ["model", "tenant"], registry=registry
        )
        self.wait = Histogram(
            f"{_PREFIX}_queue_wait_seconds",
            "How long requests waited that were let go.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )

    def of(self, model: str) -> ModelQueueMetrics:
        """The metrics of one model."""
        return ModelQueueMetrics(self, model)

    def label(self, tenant: str) -> str:
        """What `tenant` is called in metrics."""
        if tenant not in self._tenants:
            if len(self._tenants) >= _TENANTS:
                return "other"
            self._tenants.add(tenant)
        return tenant


class ModelQueueMetrics:
    """The families with one model's label bound."""

    def __init__(self, families: QueueMetrics, model: str) -> None:
        self._families = families
        self._model = model

    def received(self) -> None:
        """A request came."""
        self._families.received.labels(self._model).inc()

    def rejected(self, reason: str) -> None:
        """One was refused."""
        self._families.rejected.labels(self._model, reason).inc()

    def waited(self, seconds: float) -> None:
        """One was let go."""
        self._families.wait.labels(self._model).observe(seconds)

    def pending(self, tenant: str, requests: int, tokens: int) -> None:
        """So many more wait; negative when they left."""
        label = self._families.label(tenant)
        self._families.pending_requests.labels(self._model, label).inc(requests)
        self._families.pending_tokens.labels(self._model, label).inc(tokens)
