"""Selects a request plane by name; nobody names an implementation."""

from __future__ import annotations

from dynamo.plugins import plugins
from dynamo.protocols.planes import PlaneOptions, RequestPlane
from dynamo.runtime.request_plane.failover import FailoverPlane

__all__ = ["create_request_plane"]


def create_request_plane(name: str, options: PlaneOptions, fallback: str = "") -> RequestPlane:
    """The request plane `name`, without a socket yet; requests that it cannot carry go over `fallback`, if any.

    Raises:
        PluginNotFound: no plugin has it; the hint lists those there are.
    """
    planes = [plugins().request_planes.get(chosen)(options) for chosen in dict.fromkeys((name, fallback)) if chosen]
    return planes[0] if len(planes) == 1 else FailoverPlane(planes)
