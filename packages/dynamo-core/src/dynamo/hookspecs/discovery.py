"""Discovery: who serves which endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.hookspecs import hookspec

if TYPE_CHECKING:
    from dynamo.protocols.discovery import Discovery
    from dynamo.protocols.registry import Registry

__all__ = ["dynamo_register_discovery_backends"]


@hookspec
def dynamo_register_discovery_backends(backends: Registry[Callable[[str], Discovery]]) -> None:
    """Register discovery backends by the scheme of their URL.

    The target gets the whole URL (``file:///run/dynamo``, ``etcd://127.0.0.1:2379``) and makes a
    :class:`~dynamo.protocols.discovery.Discovery` that is not started yet.
    """
