"""The body of ``POST /v1/batches``."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.batches.record import BatchState
from dynamo.frontend.files.record import expiry_seconds
from dynamo.frontend.metadata import check_metadata

__all__ = ["ENDPOINTS", "BatchRequest", "new_state"]

#: Paths that the requests of a batch may be for.
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_WINDOW = re.compile(r"([0-9]{1,6})([smhd])\Z")
_MOST_SECONDS = 14 * 24 * 3600


class BatchRequest(msgspec.Struct, kw_only=True):
    """``POST /v1/batches``."""

    input_file_id: str
    endpoint: str
    completion_window: str
    """24h, as with OpenAI, or another number of s, m, h or d, up to 14 days."""
    metadata: dict[str, str] | None = None
    output_expires_after: dict[str, Any] | None = None


def new_state(request: BatchRequest, now: float) -> BatchState:
    """A batch that begins now, in Unix seconds.

    Raises:
        InvalidRequest: a field is wrong; `param` names it.
    """
    if request.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"'endpoint' is {request.endpoint!r}; use one of {', '.join(ENDPOINTS)}", param="endpoint")
    check_metadata(request.metadata or {})
    expiry = request.output_expires_after
    return BatchState(
        endpoint=request.endpoint,
        completion_window=request.completion_window,
        expires_at=now + _window_seconds(request.completion_window),
        metadata=request.metadata,
        output_expiry_seconds=None if expiry is None else expiry_seconds(expiry, "output_expires_after"),
    )


def _window_seconds(window: str) -> int:
    found = _WINDOW.match(window)
    seconds = int(found.group(1)) * _UNITS[found.group(2)] if found else 0
    if not 0 < seconds <= _MOST_SECONDS:
        raise InvalidRequest(
            f"'completion_window' is {window!r}; use 24h, or another time up to 14d", param="completion_window"
        )
    return seconds
