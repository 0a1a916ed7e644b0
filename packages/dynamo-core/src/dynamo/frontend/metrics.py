"""Metrics of the frontend; per token nothing but an addition, histograms once per request."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dynamo.frontend.access_log import AccessLog
from dynamo.frontend.security.identity import current_identity
from dynamo.runtime.tracing import Span

__all__ = ["FrontendMetrics", "RequestMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ITL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class FrontendMetrics:
    """All families of one frontend process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "dynamo_frontend"
        self.access_log: AccessLog | None = None
        self.open_requests = 0
        """Requests in work now, over all models."""
        self.requests = Counter(
            f"{prefix}_requests",
            "Requests that ended.",
            ["model", "endpoint", "request_type", "status", "error_type"],
            registry=registry,
        )
        self.inflight = Gauge(f"{prefix}_inflight_requests", "Requests in work.", ["model"], registry=registry)
        self.output_tokens = Counter(f"{prefix}_output_tokens", "Tokens sent.", ["model"], registry=registry)
        self.cancellations = Counter(
            f"{prefix}_cancellations", "Requests that the client gave up.", ["model"], registry=registry
        )
        self.migrations = Counter(
            f"{prefix}_migrations", "Streams that moved to another worker.", ["model"], registry=registry
        )
        self.ttft = _histogram(registry, f"{prefix}_time_to_first_token_seconds", "Time to first token.", _SECONDS)
        self.itl = _histogram(
            registry, f"{prefix}_inter_token_latency_seconds", "Mean time between tokens of a request.", _ITL_SECONDS
        )
        self.duration = _histogram(registry, f"{prefix}_request_duration_seconds", "Whole request.", _SECONDS)
        self.isl = _histogram(registry, f"{prefix}_input_sequence_tokens", "Prompt tokens.", _TOKENS)
        self.osl = _histogram(registry, f"{prefix}_output_sequence_tokens", "Output tokens.", _TOKENS)

    def begin(self, model: str, endpoint: str, request_id: str, span: Span, *, stream: bool) -> RequestMetrics:
        """Start to count one request; `span` ends with it."""
        return RequestMetrics(self, model, endpoint, request_id, "stream" if stream else "unary", span)

    def refused(self, endpoint: str, error_type: str, status: int) -> None:
        """A request that never reached a model."""
        self.requests.labels("", endpoint, "", str(status), error_type).inc()


class RequestMetrics:
    """One HTTP request, over all its choices."""

    __slots__ = (
        "_endpoint",
        "_families",
        "_first",
        "_identity",
        "_kind",
        "_last",
        "_model",
        "_open",
        "_request_id",
        "_started",
        "_tokens",
        "_was_cancelled",
        "prompt_tokens",
        "span",
    )

    def __init__(
        self, families: FrontendMetrics, model: str, endpoint: str, request_id: str, kind: str, span: Span
    ) -> None:
        self.span = span
        self._request_id = request_id
        self._identity = current_identity()
        self._families = families
        self._model = model
        self._endpoint = endpoint
        self._kind = kind
        self._started = time.monotonic()
        self._first = 0.0
        self._last = 0.0
        self._tokens = 0
        self._open = True
        self._was_cancelled = False
        self.prompt_tokens = 0
        families.open_requests += 1
        families.inflight.labels(model).inc()

    def tokens(self, count: int) -> None:
        """`count` tokens arrived now."""
        self._last = time.monotonic()
        if not self._tokens:
            self._first = self._last
        self._tokens += count

    def migrated(self) -> None:
        """A stream of this request moved."""
        self._families.migrations.labels(self._model).inc()

    def cancelled(self) -> None:
        """The client went away."""
        self._was_cancelled = True

    def end(self, status: int, error_type: str = "") -> None:
        """The response is complete. Idempotent."""
        if not self._open:
            return
        self._open = False
        families, model = self._families, self._model
        families.open_requests -= 1
        families.inflight.labels(model).dec()
        if self._was_cancelled:
            families.cancellations.labels(model).inc()
            status, error_type = 499, "cancelled"
        budget = self._identity.budget
        if budget is not None and (self._tokens or status in (200, 499)):
            budget.charge(self.prompt_tokens + self._tokens)
        families.requests.labels(model, self._endpoint, self._kind, str(status), error_type).inc()
        families.duration.labels(model).observe(time.monotonic() - self._started)
        families.isl.labels(model).observe(self.prompt_tokens)
        families.osl.labels(model).observe(self._tokens)
        if self._tokens:
            families.output_tokens.labels(model).inc(self._tokens)
            families.ttft.labels(model).observe(self._first - self._started)
        if self._tokens > 1:
            families.itl.labels(model).observe((self._last - self._first) / (self._tokens - 1))
        self.span.set("gen_ai.usage.input_tokens", self.prompt_tokens)
        self.span.set("gen_ai.usage.output_tokens", self._tokens)
        self.span.end(error_type or None)
        if families.access_log is not None:
            families.access_log.write(self._log_line(status, error_type))

    def _log_line(self, status: int, error_type: str) -> dict[str, Any]:
        line: dict[str, Any] = {
            "request_id": self._request_id,
            "model": self._model,
            "endpoint": self._endpoint,
            "request_type": self._kind,
            "status": status,
            "error_type": error_type,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self._tokens,
            "duration_seconds": round(time.monotonic() - self._started, 6),
            "time_to_first_token_seconds": round(self._first - self._started, 6) if self._tokens else None,
        }
        if self._identity.name:
            line["api_key_name"] = self._identity.name
        return line


def _histogram(registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(name, text, ["model"], buckets=buckets, registry=registry)
