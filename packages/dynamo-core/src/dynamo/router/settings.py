"""Settings of the router."""

from __future__ import annotations

from typing import ClassVar

from dynamo.config.settings import Settings, setting

__all__ = ["RouterSettings"]


class RouterSettings(Settings):
    """How the worker of a request is chosen."""

    section: ClassVar[str] = "router"

    router_mode: str = setting("round-robin", env=("DYN_ROUTER_MODE",))
    """round-robin, random, least-loaded, direct, or the name of an installed router picker."""
    active_prefill_tokens_threshold: int | None = setting(None, env=("DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD",), ge=1)
    """A worker with more prompt tokens admitted and not computed is busy; when all are, the answer is 503."""
    active_decode_blocks_threshold: float | None = setting(
        None, env=("DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD",), gt=0, le=1
    )
    """A worker that uses more than this part of its KV blocks is busy; when all are, the answer is 503."""
