"""Selects a request plane by name; nobody names an implementation."""

from __future__ import annotations

from dynamo.plugins import plugins
from dynamo.protocols.planes import PlaneOptions, RequestPlane

__all__ = ["create_request_plane"]


def create_request_plane(name: str, options: PlaneOptions) -> RequestPlane:
    """The request plane `name`, without a socket yet.

    Raises:
        PluginNotFound: no plugin has it; the hint lists those there are.
    """
    return plugins().request_planes.get(name)(options)
