"""Traces over frontend, router and worker, by OpenTelemetry, when it is installed and told where to send them.

Off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``..._TRACES_ENDPOINT``) is set; then each process sends its spans there
from a thread. Switched off, a request costs one attribute look-up. Context travels as W3C ``traceparent``, in HTTP
headers and in requests to workers, also when this process makes no spans of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Protocol

from dynamo.errors import ConfigError

__all__ = ["TRACE_HEADERS", "Span", "Tracing", "create_tracing", "trace_context"]

logger = logging.getLogger(__name__)

#: W3C trace context headers, as HTTP/1.1 headers are kept: in lower case.
TRACE_HEADERS = ("traceparent", "tracestate")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Span(Protocol):
    """One piece of work."""

    @property
    def context(self) -> dict[str, str]:
        """Trace headers that make other spans its children."""
        ...

    def event(self, name: str, attributes: Mapping[str, str | int | float] | None = None) -> None:
        """Something that happened at this moment."""
        ...

    def set(self, name: str, value: str | float) -> None:
        """Give it an attribute."""
        ...

    def end(self, error: str | None = None) -> None:
        """It is over. Idempotent."""
        ...


class Tracing(Protocol):
    """Makes spans."""

    def span(self, name: str, parent: Mapping[str, str], attributes: Mapping[str, str | int | float]) -> Span:
        """Begin a span whose parent is in trace headers `parent`; a root span if there is none."""
        ...

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        ...


def trace_context(headers: Mapping[str, str]) -> dict[str, str]:
    """The trace headers among `headers`."""
    return {name: headers[name] for name in TRACE_HEADERS if name in headers}


def create_tracing(service: str, environ: Mapping[str, str] | None = None) -> Tracing:
    """Tracing as the environment says.

    Raises:
        ConfigError: an endpoint is set, and OpenTelemetry is not installed.
    """
    env = os.environ if environ is None else environ
    if not any(env.get(name) for name in _ENDPOINTS) or env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return _NoTracing()
    try:
        return _OpenTelemetry(service, env)
    except ImportError as error:
        raise ConfigError(
            f"traces are to be sent, and OpenTelemetry is not installed: {error}",
            hint="pip install 'dynamo-core[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from error


class _NoSpan:
    """Passes the parent's context on."""

    __slots__ = ("context",)

    def __init__(self, context: dict[str, str]) -> None:
        self.context = context

    def event(self, name: str, attributes: Mapping[str, str | int | float] | None = None) -> None:
        """Nothing."""

    def set(self, name: str, value: str | float) -> None:
        """Nothing."""

    def end(self, error: str | None = None) -> None:
        """Nothing."""


class _NoTracing:
    """Tracing is off."""

    def span(self, name: str, parent: Mapping[str, str], attributes: Mapping[str, str | int | float]) -> Span:  # noqa: ARG002
        """A span that only passes on the parent."""
        return _NoSpan(dict(parent))

    def close(self) -> None:
        """Nothing."""


class _OpenTelemetry:
    """Spans by the OpenTelemetry SDK, over OTLP/HTTP."""

    def __init__(self, service: str, environ: Mapping[str, str]) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = environ.get("OTEL_SERVICE_NAME") or service
        # A provider of our own, not the global one: engines that trace for themselves set that.
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("dynamo")
        self._propagator = TraceContextTextMapPropagator()
        logger.info("traces of %s go to %s", name, next(environ[key] for key in _ENDPOINTS if environ.get(key)))

    def span(self, name: str, parent: Mapping[str, str], attributes: Mapping[str, str | int | float]) -> Span:
        """See `Tracing.span`."""
        context = self._propagator.extract(dict(parent))
        return _OpenTelemetrySpan(
            self._tracer.start_span(name, context=context, attributes=dict(attributes)), self._propagator
        )

    def close(self) -> None:
        """See `Tracing.close`."""
        self._provider.shutdown()


class _OpenTelemetrySpan:
    """One span of the SDK."""

    def __init__(self, span: Any, propagator: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._span = span
        self._ended = False
        self.context: dict[str, str] = {}
        propagator.inject(self.context, context=set_span_in_context(span))

    def event(self, name: str, attributes: Mapping[str, str | int | float] | None = None) -> None:
        """See `Span.event`."""
        self._span.add_event(name, attributes=dict(attributes or {}))

    def set(self, name: str, value: str | float) -> None:
        """See `Span.set`."""
        self._span.set_attribute(name, value)

    def end(self, error: str | None = None) -> None:
        """See `Span.end`."""
        if self._ended:
            return
        self._ended = True
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()
