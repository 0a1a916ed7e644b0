"""Settings of the frontend."""

from __future__ import annotations

from typing import ClassVar

from dynamo.config.settings import Settings, setting

__all__ = ["FrontendSettings"]


class FrontendSettings(Settings):
    """The HTTP side of a deployment."""

    section: ClassVar[str] = "frontend"

    http_host: str = setting("0.0.0.0", env=("DYN_HTTP_HOST",))
    """Address that clients connect to."""
    http_port: int = setting(8000, env=("DYN_HTTP_PORT",), ge=0, le=65535)
    """Port that clients connect to; 0 takes a free one."""
    http_body_limit_mib: int = setting(8, env=("DYN_HTTP_BODY_LIMIT_MB",), ge=1)
    """Largest request body in MiB; beyond it the answer is 413."""
    request_timeout_seconds: float = setting(600.0, env=("DYN_REQUEST_TIMEOUT_SECONDS",), gt=0)
    """A request that takes longer is cancelled."""
    max_inflight_requests: int = setting(10_000, env=("DYN_MAX_INFLIGHT_REQUESTS",), ge=1)
    """Open requests of this process; beyond it the answer is 503 with Retry-After."""
    migration_limit: int = setting(3, env=("DYN_MIGRATION_LIMIT",), ge=0)
    """How often one stream may move to another worker after losing its own."""
    max_choices: int = setting(16, env=("DYN_MAX_CHOICES",), ge=1)
    """Largest `n` times prompts of one request."""
    max_stop_strings: int = setting(16, env=("DYN_MAX_STOP_STRINGS",), ge=0)
    """Most stop strings of one request."""
    artifact_cache_dir: str = setting("", env=("DYN_ARTIFACT_CACHE_DIR",))
    """Where tokenizers fetched from workers are kept; empty: below the state directory."""
    access_log: str = setting("", env=("DYN_ACCESS_LOG",))
    """File that gets one JSON line per finished request; ``-`` is standard output, empty none."""
    drain_grace_seconds: float = setting(30.0, env=("DYN_FRONTEND_DRAIN_GRACE_SECONDS",), ge=0)
    """How long open responses may go on after SIGTERM."""
