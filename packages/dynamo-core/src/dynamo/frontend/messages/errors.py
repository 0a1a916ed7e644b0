"""Errors as clients of Anthropic's API parse them."""

from __future__ import annotations

from typing import Any

from dynamo.errors import DynamoError

__all__ = ["render_error"]

_OVERLOADED_STATUS = 529
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    _OVERLOADED_STATUS: "overloaded_error",
}


def render_error(error: DynamoError) -> tuple[int, dict[str, Any]]:
    """Status and body: ``{"type": "error", "error": {"type", "message"}}``.

    What is 503 elsewhere, because nobody can take the request now, is 529 here.
    """
    status = _OVERLOADED_STATUS if error.openai_type == "overloaded_error" else error.http_status
    fallback = "invalid_request_error" if status < 500 else "api_error"
    return status, {"type": "error", "error": {"type": _TYPES.get(status, fallback), "message": str(error)}}
