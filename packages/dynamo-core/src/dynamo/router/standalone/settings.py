"""Settings of the standalone router."""

from __future__ import annotations

from typing import ClassVar

from dynamo.config.settings import Settings, setting

__all__ = ["RouterServiceSettings"]


class RouterServiceSettings(Settings):
    """A router in a process of its own, before the workers of one endpoint."""

    section: ClassVar[str] = "router_service"

    endpoint: str = setting("", env=("DYN_ROUTER_ENDPOINT",))
    """Endpoint of the workers, as namespace.component.endpoint."""
    component: str = setting("router", env=("DYN_ROUTER_COMPONENT",), flags=("--component",))
    """Component that this router serves its own endpoints as, in the namespace of the workers."""
    block_size_tokens: int | None = setting(
        None, env=("DYN_ROUTER_BLOCK_SIZE",), flags=("--router-block-size", "--block-size"), ge=1
    )
    """KV block size of workers that announce no model card; the others say theirs."""
    drain_grace_seconds: float = setting(30.0, env=("DYN_ROUTER_DRAIN_GRACE_SECONDS",), ge=0)
    """How long open streams may go on after SIGTERM."""
