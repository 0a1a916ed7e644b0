"""Every error that a user, a client or another process can see.

::

    DynamoError                 500  never
    ├── ConfigError             500  never         a setting, file or flag is wrong
    ├── PluginError             500  never
    │   ├── PluginNotFound
    │   ├── PluginConflict
    │   └── PluginIncompatible
    ├── InvalidRequest          400  never
    ├── Unauthorized            401  never
    ├── ModelNotFound           404  never
    ├── RequestTooLarge         413  never
    ├── RateLimited             429  never         carries retry_after_seconds
    ├── Overloaded              503  other worker
    ├── NoInstances             503  never
    ├── Draining                503  other worker
    ├── TransportError          502  other worker
    │   ├── CannotConnect
    │   ├── Disconnected
    │   └── ResponseTimeout     504
    ├── EngineError             500  never
    │   ├── EngineShutdown      503  other worker
    │   └── StreamIncomplete    502  other worker
    ├── Cancelled               499  never
    ├── KvTransferError         502  other worker
    ├── DiscoveryError          503  never
    │   └── LeaseLost
    └── PlannerError            500  never

A class fixes three things: ``code`` (the stable string on the wire), ``http_status`` and ``retry``. Migration and
the HTTP layer read those and nothing else. Foreign exceptions are mapped where they enter and chained with ``from``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "Cancelled",
    "CannotConnect",
    "ConfigError",
    "Disconnected",
    "DiscoveryError",
    "Draining",
    "DynamoError",
    "EngineError",
    "EngineShutdown",
    "InvalidRequest",
    "KvTransferError",
    "LeaseLost",
    "ModelNotFound",
    "NoInstances",
    "Overloaded",
    "PlannerError",
    "PluginConflict",
    "PluginError",
    "PluginIncompatible",
    "PluginNotFound",
    "RateLimited",
    "RequestTooLarge",
    "ResponseTimeout",
    "Retry",
    "StreamIncomplete",
    "TransportError",
    "Unauthorized",
    "error_from_wire",
]


class Retry(enum.Enum):
    """Who may be asked again after this error."""

    NEVER = "never"
    SAME_WORKER = "same_worker"
    OTHER_WORKER = "other_worker"


class DynamoError(Exception):
    """Root of the tree.

    ``param`` names the request field or setting at fault, ``hint`` says how to fix it (the CLI prints it on a line
    of its own), ``reason`` is the code of the OpenAI error body where clients look for a specific one
    (``context_length_exceeded``), ``origin`` the process that raised it.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    retry: ClassVar[Retry] = Retry.NEVER
    #: ``type`` of the OpenAI error body.
    openai_type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str | None = None,
        reason: str | None = None,
        retry_after_seconds: float | None = None,
        details: Mapping[str, Any] | None = None,
        origin: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.details = dict(details or {})
        self.origin = origin

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def to_wire(self) -> dict[str, Any]:
        """The map of an error frame (DESIGN 4.4); :func:`error_from_wire` is its inverse."""
        wire: dict[str, Any] = {"code": self.code, "message": self.message, "retry": self.retry.value}
        optional = {
            "param": self.param,
            "hint": self.hint,
            "reason": self.reason,
            "retry_after_seconds": self.retry_after_seconds,
            "details": self.details or None,
            "origin": self.origin,
        }
        wire.update({key: value for key, value in optional.items() if value is not None})
        return wire

    def to_openai(self) -> dict[str, Any]:
        """The body that OpenAI clients parse: ``{"error": {"message", "type", "param", "code"}}``."""
        return {
            "error": {
                "message": str(self),
                "type": self.openai_type,
                "param": self.param,
                "code": self.reason or self.code,
            }
        }


class ConfigError(DynamoError):
    """A setting, a file or a flag is wrong; the message names it and the value."""

    code = "config_error"


class PluginError(DynamoError):
    """A plugin is wrong."""

    code = "plugin_error"


class PluginNotFound(PluginError):
    """No plugin registered this name."""

    code = "plugin_not_found"


class PluginConflict(PluginError):
    """Two distributions registered one name."""

    code = "plugin_conflict"


class PluginIncompatible(PluginError):
    """The plugin was written for another major version of the plugin API."""

    code = "plugin_incompatible"


class InvalidRequest(DynamoError):
    """The client's request is wrong; sending it again cannot help."""

    code = "invalid_request"
    http_status = 400
    openai_type = "invalid_request_error"


class Unauthorized(DynamoError):
    """A missing or wrong credential."""

    code = "unauthorized"
    http_status = 401
    openai_type = "authentication_error"


class ModelNotFound(DynamoError):
    """No worker ever announced this model."""

    code = "model_not_found"
    http_status = 404
    openai_type = "invalid_request_error"


class RequestTooLarge(DynamoError):
    """A body, frame or prompt above its limit."""

    code = "request_too_large"
    http_status = 413
    openai_type = "invalid_request_error"


class RateLimited(DynamoError):
    """This caller sent too much; ``retry_after_seconds`` says when to come back."""

    code = "rate_limited"
    http_status = 429
    openai_type = "rate_limit_error"


class Overloaded(DynamoError):
    """A bounded queue is full."""

    code = "overloaded"
    http_status = 503
    retry = Retry.OTHER_WORKER
    openai_type = "overloaded_error"


class NoInstances(DynamoError):
    """The model is known, but nobody serves it now."""

    code = "no_instances"
    http_status = 503
    openai_type = "overloaded_error"


class Draining(DynamoError):
    """The worker finishes what it has and takes nothing new."""

    code = "draining"
    http_status = 503
    retry = Retry.OTHER_WORKER
    openai_type = "overloaded_error"


class TransportError(DynamoError):
    """The connection, not the request, failed."""

    code = "transport_error"
    http_status = 502
    retry = Retry.OTHER_WORKER


class CannotConnect(TransportError):
    """Nobody listens at the address, or the handshake failed."""

    code = "cannot_connect"


class Disconnected(TransportError):
    """The connection broke while a stream was open."""

    code = "disconnected"


class ResponseTimeout(TransportError):
    """Nothing came before the deadline."""

    code = "response_timeout"
    http_status = 504


class EngineError(DynamoError):
    """The engine failed on this request."""

    code = "engine_error"


class EngineShutdown(EngineError):
    """The engine stopped under the request."""

    code = "engine_shutdown"
    http_status = 503
    retry = Retry.OTHER_WORKER


class StreamIncomplete(EngineError):
    """The stream ended without a finish reason."""

    code = "stream_incomplete"
    http_status = 502
    retry = Retry.OTHER_WORKER


class Cancelled(DynamoError):
    """The client went away or asked to stop."""

    code = "cancelled"
    http_status = 499


class KvTransferError(DynamoError):
    """KV blocks did not arrive, or did not match."""

    code = "kv_transfer_error"
    http_status = 502
    retry = Retry.OTHER_WORKER


class DiscoveryError(DynamoError):
    """The discovery backend failed."""

    code = "discovery_error"
    http_status = 503


class LeaseLost(DiscoveryError):
    """A registration expired although its owner lives."""

    code = "lease_lost"


class PlannerError(DynamoError):
    """The planner cannot decide or apply."""

    code = "planner_error"


def _tree(root: type[DynamoError]) -> dict[str, type[DynamoError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


_BY_CODE = _tree(DynamoError)


def error_from_wire(wire: Mapping[str, Any], *, origin: str | None = None) -> DynamoError:
    """Rebuild the error of an error frame; an unknown code is an :class:`EngineError`, which is never retried."""
    cls = _BY_CODE.get(str(wire.get("code")), EngineError)
    after = wire.get("retry_after_seconds")
    details = wire.get("details")
    return cls(
        str(wire.get("message", "unknown error")),
        param=wire.get("param"),
        hint=wire.get("hint"),
        reason=wire.get("reason"),
        retry_after_seconds=float(after) if isinstance(after, (int, float)) else None,
        details=details if isinstance(details, Mapping) else None,
        origin=wire.get("origin") or origin,
    )
