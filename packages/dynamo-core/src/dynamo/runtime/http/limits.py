"""Bounds of an HTTP server."""

from __future__ import annotations

import msgspec

__all__ = ["HttpLimits"]


class HttpLimits(msgspec.Struct, frozen=True):
    """Bounds of one server."""

    head_bytes: int = 32 << 10
    body_bytes: int = 8 << 20
    pipelined_requests: int = 8
    """Requests that wait on one connection for their turn."""
    read_timeout_seconds: float = 30.0
    """For a whole request, from its first byte."""
    idle_timeout_seconds: float = 75.0
    """For the next request of a kept-alive connection."""
    connections: int = 20000
