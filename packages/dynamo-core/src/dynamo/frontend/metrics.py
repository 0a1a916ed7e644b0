"""Metrics of the frontend; per token nothing but an addition, histograms once per request."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dynamo.frontend.access_log import AccessLog
from dynamo.frontend.security.identity import current_identity
from dynamo.protocols.addressing import WorkerKey
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
        """Requests in work now, over all models; also those whose prompts are still being made ready."""
        self.preparing_bytes = 0
        """Bodies of the latter."""
        self._models: dict[str, _ModelMetrics] = {}
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

    def of(self, model: str) -> _ModelMetrics:
        """The metrics of one model."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = _ModelMetrics(self, model)
        return found

    def begin(self, model: str, endpoint: str, request_id: str, span: Span, *, stream: bool) -> RequestMetrics:
        """Start to count one request; `span` ends with it."""
        return RequestMetrics(self, model, endpoint, request_id, "stream" if stream else "unary", span)

    def refused(self, endpoint: str, error_type: str, status: int) -> None:
        """A request that never reached a model."""
        self.requests.labels("", endpoint, "", str(status), error_type).inc()


class _ModelMetrics:
    """What a request of one model counts, found once: looking up labels costs more than counting."""

    def __init__(self, families: FrontendMetrics, model: str) -> None:
        self._requests = families.requests
        self._model = model
        self._ended: dict[tuple[str, str, int, str], Counter] = {}
        self.inflight = families.inflight.labels(model)
        self.output_tokens = families.output_tokens.labels(model)
        self.ttft = families.ttft.labels(model)
        self.itl = families.itl.labels(model)
        self.duration = families.duration.labels(model)
        self.isl = families.isl.labels(model)
        self.osl = families.osl.labels(model)

    def ended(self, endpoint: str, kind: str, status: int, error_type: str) -> Counter:
        """The counter of requests that ended so."""
        key = (endpoint, kind, status, error_type)
        found = self._ended.get(key)
        if found is None:
            found = self._ended[key] = self._requests.labels(self._model, endpoint, kind, str(status), error_type)
        return found


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
        "_of_model",
        "_open",
        "_request_id",
        "_started",
        "_tokens",
        "_was_cancelled",
        "prompt_tokens",
        "routing",
        "span",
        "worker",
    )

    def __init__(
        self, families: FrontendMetrics, model: str, endpoint: str, request_id: str, kind: str, span: Span
    ) -> None:
        self.span = span
        self.worker: WorkerKey | None = None
        """Where the request is, or was last."""
        self.routing: dict[str, Any] | None = None
        """Why it is there, for a client that asked for it in the body."""
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
        self._of_model = families.of(model)
        self._of_model.inflight.inc()

    @property
    def endpoint(self) -> str:
        """Name of the endpoint that the request came in at."""
        return self._endpoint

    @property
    def api_key_name(self) -> str:
        """Name of the API key that made the request; "" without keys."""
        return self._identity.name

    def elapsed_seconds(self) -> float:
        """Since the request was begun."""
        return time.monotonic() - self._started

    def first_token_seconds(self) -> float | None:
        """From the request to its first token; None before it."""
        return self._first - self._started if self._tokens else None

    def tokens(self, count: int) -> None:
        """`count` tokens arrived now."""
        self._last = time.monotonic()
        if not self._tokens:
            self._first = self._last
        self._tokens += count

    def seconds_so_far(self) -> tuple[float | None, float]:
        """Until the first token, None before it, and until now."""
        ttft = self._first - self._started if self._tokens else None
        return ttft, time.monotonic() - self._started

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
        own = self._of_model
        own.inflight.dec()
        if self._was_cancelled:
            families.cancellations.labels(model).inc()
            status, error_type = 499, "cancelled"
        budget = self._identity.budget
        if budget is not None and (self._tokens or status in (200, 499)):
            budget.charge(self.prompt_tokens + self._tokens)
        own.ended(self._endpoint, self._kind, status, error_type).inc()
        own.duration.observe(time.monotonic() - self._started)
        own.isl.observe(self.prompt_tokens)
        own.osl.observe(self._tokens)
        if self._tokens:
            own.output_tokens.inc(self._tokens)
            own.ttft.observe(self._first - self._started)
        if self._tokens > 1:
            own.itl.observe((self._last - self._first) / (self._tokens - 1))
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
