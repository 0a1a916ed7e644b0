"""What a client may say about its place in the router's queue, and whom it is believed.

The tenant is the API key: nobody pushes in under another name. Only an admin key, a gateway's for example, may name the
tenant it asks for, in a header. Where there are keys, `priority` lets a request go behind others, and only an admin's
before them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from dynamo.errors import InvalidRequest
from dynamo.frontend.security.identity import current_identity

__all__ = ["QueuePlace", "queue_place"]

TENANT_HEADER = "x-dynamo-tenant"
TARGET_HEADER = "x-dynamo-ttft-target-ms"
_TENANT = re.compile(r"[\w.@:-]{1,128}\Z", re.ASCII)
_LONGEST_TARGET_MS = 3_600_000
#: More than lies between any two priorities, which have 32 bits.
_TIER = 1 << 32


class QueuePlace(NamedTuple):
    """Where a request belongs among those that wait; see `dynamo.protocols.routing.RouteRequest`."""

    tenant: str = ""
    priority: int = 0
    """Lower is sooner; for the engine too."""
    ttft_target_seconds: float | None = None
    tier: int = 0
    """Higher goes before all of lower tiers, in the router's queue alone."""

    @property
    def router_priority(self) -> int:
        """Tier and priority as one number; lower is sooner."""
        return self.priority - self.tier * _TIER


def queue_place(headers: Mapping[str, str], priority: int, tier: int = 0) -> QueuePlace:
    """The place of the current request, with the `priority` (lower is sooner) and `tier` (higher is) of its body.

    Raises:
        InvalidRequest: a header is no name, or no number of milliseconds.
    """
    identity = current_identity()
    if identity.name and not identity.admin:
        return QueuePlace(identity.name, max(0, priority), _target_seconds(headers))
    tenant = headers.get(TENANT_HEADER, "") if identity.admin else ""
    if tenant and not _TENANT.match(tenant):
        raise InvalidRequest(f"{TENANT_HEADER} must be 1 to 128 letters, digits or any of .@:-_", param=TENANT_HEADER)
    return QueuePlace(tenant or identity.name, priority, _target_seconds(headers), tier)


def _target_seconds(headers: Mapping[str, str]) -> float | None:
    text = headers.get(TARGET_HEADER)
    if text is None:
        return None
    try:
        target = float(text)
    except ValueError:
        target = 0.0
    if not 0 < target <= _LONGEST_TARGET_MS:
        raise InvalidRequest(
            f"{TARGET_HEADER} is {text[:32]!r}; it must be above 0 and at most {_LONGEST_TARGET_MS}",
            param=TARGET_HEADER,
        )
    return target / 1000
