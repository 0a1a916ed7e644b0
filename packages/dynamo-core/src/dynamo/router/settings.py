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
