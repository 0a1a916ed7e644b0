"""Selects an event plane by name; nobody names an implementation."""

from __future__ import annotations

from dynamo.plugins import plugins
from dynamo.protocols.event_plane import EventPlane, EventPlaneOptions

__all__ = ["create_event_plane"]


def create_event_plane(name: str, options: EventPlaneOptions) -> EventPlane:
    """The event plane `name`, without a socket yet.

    Raises:
        PluginNotFound: no plugin has it; the hint lists those there are.
    """
    return plugins().event_planes.get(name)(options)
